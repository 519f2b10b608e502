"""Measures of clips: each gives a clip a row of numbers, for distances and means."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64, PyTree, Shaped, UInt8

from dynamicrafter_jax import sharding
from dynamicrafter_jax.data.clips import prompt_ids
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import protocol as protocols
from dynamicrafter_jax.metrics import frames
from dynamicrafter_jax.metrics.clip_embedding import (
    ClipEmbedding,
    describe_clip,
    frame_vectors,
    load_clip_embedding,
    text_vectors,
)
from dynamicrafter_jax.metrics.dreamsim import DreamSim
from dynamicrafter_jax.metrics.dreamsim_weights import describe_dreamsim, load_dreamsim
from dynamicrafter_jax.metrics.features import Extractor
from dynamicrafter_jax.metrics.i3d import i3d_features
from dynamicrafter_jax.metrics.i3d_weights import describe_i3d, load_i3d
from dynamicrafter_jax.metrics.pic import conformity, pic

Seen = UInt8[np.ndarray, "t1 h w 3"]
"""The image that a clip was made from, followed by the clip's frames."""

Rows = Iterator[tuple[tuple[str, ...], Shaped[np.ndarray, "n ..."]]]
"""Batches of names of clips, with a row for each."""

Numbers = Mapping[str, Float64[np.ndarray, " n"]]
"""A number for each clip, by the number's name."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of single clips.

    Attributes:
        name: Its name in files and messages.
        settings: Everything besides the clips that its numbers depend on, as plain JSON.
        run: Takes names and clips; yields names and rows.
        numbers: Takes rows of clips and their prompts; returns the numbers of single clips.
    """

    name: str
    settings: Mapping[str, Any]
    run: Callable[[Iterable[tuple[str, Seen]]], Rows]
    numbers: Callable[[Float[np.ndarray, "n ..."], Sequence[str]], Numbers]


I3D, DREAMSIM, CLIP, FRAMES = MEASURES = "i3d", "dreamsim", "clip", "frames"
"""Names of the measures."""

PIC = "PIC"
_MOTION = "motion_degree"
_CONSISTENCY, _SIMILARITY = "frame_consistency", "text_similarity"

# Above the PSNR of any two pictures of up to half a million pixels that differ at all.
_EQUAL_DB = 110.0


def i3d_measure(
    path: epath.PathLike, settings: protocols.Measures, mesh: Mesh, clips_per_device: int = 1
) -> Measure:
    """Returns the measure of I3D features, for FVD and KVD.

    Args:
        path: I3D's weights.
        settings: Settings of the protocol.
        mesh: The devices that share the clips.
        clips_per_device: Clips that a device processes at once.

    Raises:
        UserError: The weights can't be used, or are not the protocol's.
    """
    params = load_i3d(path)
    about = describe_i3d(path, half_pixel_centers=settings.half_pixel_centers)
    check_weights("I3D", path, about["weights_sha256"], settings.i3d_sha256)
    network = functools.partial(_i3d, half_pixel_centers=settings.half_pixel_centers)
    extractor = Extractor(network, params, mesh, clips_per_device=clips_per_device)
    return Measure(I3D, about, extractor, lambda rows, prompts: {})


def dreamsim_measure(
    path: epath.PathLike,
    settings: protocols.Measures,
    mesh: Mesh,
    clips_per_device: int = 1,
    model: DreamSim | None = None,
) -> Measure:
    """Returns the measure of each frame's similarity to the image, whose mean is PIC.

    Args:
        path: DreamSim's weights; see `dreamsim_weights.load_dreamsim`.
        settings: Settings of the protocol.
        mesh: The devices that share the clips.
        clips_per_device: Clips that a device processes at once.
        model: Sizes of networks other than the released ones.

    Raises:
        UserError: The weights can't be used, or are not the protocol's.
    """
    about = describe_dreamsim(path, settings.dreamsim)  # quick to find that a file is missing
    check_weights("DreamSim", path, about["weights_sha256"], settings.dreamsim_sha256)
    params = load_dreamsim(path, settings.dreamsim, model)
    network = functools.partial(conformity, model=model)
    extractor = Extractor(network, params, mesh, clips_per_device=clips_per_device)
    return Measure(DREAMSIM, about, extractor, lambda rows, prompts: {PIC: pic(rows)})


def clip_measure(
    path: epath.PathLike,
    settings: protocols.Measures,
    mesh: Mesh,
    clips_per_device: int = 1,
    model: ClipEmbedding | None = None,
) -> Measure:
    """Returns the measure of CLIP similarity, between adjacent frames and of frames to prompts.

    A row holds the first number, followed by the mean of the frames' unit vectors, whose dot
    product with the prompt's unit vector is the second. So rows do not depend on prompts.

    Args:
        path: CLIP's weights; see `clip_embedding.load_clip_embedding`.
        settings: Settings of the protocol.
        mesh: The devices that share the clips.
        clips_per_device: Clips, or prompts, that a device processes at once.
        model: Sizes of towers other than ViT-H/14's.

    Raises:
        UserError: The weights can't be used, or are not the protocol's.
    """
    params = sharding.replicate(load_clip_embedding(path, model), mesh)
    about = describe_clip(path)
    check_weights("CLIP", path, about["weights_sha256"], settings.clip_sha256)
    options: Any = {"clips_per_device": clips_per_device}
    extractor = Extractor(functools.partial(_clip, model=model), params, mesh, **options)
    texts = Extractor(functools.partial(text_vectors, model=model), params, mesh, **options)
    length = (model or ClipEmbedding()).text_encoder.context_length

    def numbers(rows: Float[np.ndarray, "n d1"], prompts: Sequence[str]) -> Numbers:
        rows = rows.astype(np.float64)
        found = {_CONSISTENCY: rows[:, 0]}
        if all(prompts):
            different = dict.fromkeys(prompts)
            vectors: dict[str, np.ndarray] = {}
            for names, made in texts((text, prompt_ids(text, length)) for text in different):
                vectors |= zip(names, made.astype(np.float64), strict=True)
            text = np.stack([vectors[prompt] for prompt in prompts])
            text /= np.linalg.norm(text, axis=-1, keepdims=True)
            found[_SIMILARITY] = (text * rows[:, 1:]).sum(-1)
        return found

    return Measure(CLIP, about, extractor, numbers)


def frames_measure(mesh: Mesh, clips_per_device: int = 1, *, has_images: bool = True) -> Measure:
    """Returns the measure of pixels, which needs no network.

    Args:
        mesh: The devices that share the clips.
        clips_per_device: Clips that a device processes at once.
        has_images: Whether the images that clips were made from are known; if not, only the degree
            of motion is measured.
    """
    network, columns = (_pixels, frames.COLUMNS) if has_images else (_motion, (_MOTION,))
    extractor = Extractor(network, {}, mesh, clips_per_device=clips_per_device)
    about = {"columns": list(columns), "equal_pictures_db": _EQUAL_DB}

    def numbers(rows: Float[np.ndarray, "n k"], prompts: Sequence[str]) -> Numbers:
        del prompts
        return dict(zip(columns, rows.astype(np.float64).T, strict=True))

    return Measure(FRAMES, about, extractor, numbers)


def check_weights(network: str, path: epath.PathLike, found: str, pinned: str | None) -> None:
    """Checks that weights are the ones that a protocol pins down, if it does.

    Raises:
        UserError: The hashes differ.
    """
    if pinned is not None and found != pinned:
        raise UserError(
            f"{path} is not the file of {network} weights that the protocol names: it hashes to "
            f"{found} instead of {pinned}"
        )


def _i3d(params: PyTree, seen: Array, *, half_pixel_centers: bool) -> Array:
    return i3d_features(params, seen[:, 1:], half_pixel_centers=half_pixel_centers)


def _clip(params: PyTree, seen: Array, model: ClipEmbedding | None) -> Array:
    vectors = frame_vectors(params, seen[:, 1:], model)
    consistency = frames.frame_consistency(vectors)
    unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.concatenate([consistency[:, None], unit.mean(1)], axis=-1)


def _pixels(params: PyTree, seen: Array) -> Array:
    # The PSNR of equal pictures is infinite, which would make the mean infinite.
    return jnp.minimum(frames.frame_measures(params, seen), _EQUAL_DB)


def _motion(params: PyTree, seen: Array) -> Array:
    del params
    return frames.motion_degree(seen[:, 1:])[:, None]
