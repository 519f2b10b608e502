"""What is measured of a clip: a row of numbers, from which distances and means are made."""

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
"""The image that a clip was made from, and then the clip's frames."""

Rows = Iterator[tuple[tuple[str, ...], Shaped[np.ndarray, "n ..."]]]
"""Names of clips, and a row for each."""

Numbers = Mapping[str, Float64[np.ndarray, " n"]]
"""By name, a number of each clip."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of single clips.

    Attributes:
        name: In files and messages.
        settings: All that decides its numbers besides the clips, as JSON has it.
        run: Takes names and what is seen; yields names and rows.
        numbers: Takes rows of clips and their prompts; returns what is said of single clips.
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

# More than any two pictures have that differ at all, up to half a million pixels.
_EQUAL_DB = 110.0


def i3d_measure(
    path: epath.PathLike, settings: protocols.Measures, mesh: Mesh, clips_per_device: int = 1
) -> Measure:
    """Returns the features of I3D, for FVD and KVD.

    Args:
        path: Its weights.
        settings: Of the protocol.
        mesh: Whose devices share the clips.
        clips_per_device: Clips that a device takes at once.

    Raises:
        UserError: The weights can't be used, or are not those of the protocol.
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
    """Returns what each frame keeps of the image, whose mean is PIC.

    Args:
        path: Its weights; see `dreamsim_weights.load_dreamsim`.
        settings: Of the protocol.
        mesh: Whose devices share the clips.
        clips_per_device: Clips that a device takes at once.
        model: Sizes of networks other than the released ones.

    Raises:
        UserError: The weights can't be used, or are not those of the protocol.
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
    """Returns how alike neighbouring frames are to CLIP, and how close frames are to prompts.

    A row holds the first number, and the mean of the frames' vectors of length 1, of which the
    second is the product with the prompt's. So rows do not depend on prompts.

    Args:
        path: Its weights; see `clip_embedding.load_clip_embedding`.
        settings: Of the protocol.
        mesh: Whose devices share the clips.
        clips_per_device: Clips, or prompts, that a device takes at once.
        model: Sizes of towers other than those of ViT-H/14.

    Raises:
        UserError: The weights can't be used, or are not those of the protocol.
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
    """Returns what pixels tell, without a network.

    Args:
        mesh: Whose devices share the clips.
        clips_per_device: Clips that a device takes at once.
        has_images: Whether it is known what clips were made from; else it says how they move.
    """
    network, columns = (_pixels, frames.COLUMNS) if has_images else (_motion, (_MOTION,))
    extractor = Extractor(network, {}, mesh, clips_per_device=clips_per_device)
    about = {"columns": list(columns), "equal_pictures_db": _EQUAL_DB}

    def numbers(rows: Float[np.ndarray, "n k"], prompts: Sequence[str]) -> Numbers:
        del prompts
        return dict(zip(columns, rows.astype(np.float64).T, strict=True))

    return Measure(FRAMES, about, extractor, numbers)


def check_weights(network: str, path: epath.PathLike, found: str, pinned: str | None) -> None:
    """Makes sure that weights are those of a protocol, if it says which.

    Raises:
        UserError: They are not.
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
    # PSNR of equal pictures is infinite, of which there is no mean.
    return jnp.minimum(frames.frame_measures(params, seen), _EQUAL_DB)


def _motion(params: PyTree, seen: Array) -> Array:
    del params
    return frames.motion_degree(seen[:, 1:])[:, None]
