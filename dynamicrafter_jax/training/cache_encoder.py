"""Runs the frozen networks whose outputs are cached, on all devices of this host."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.config import matmul_precision, networks_of
from dynamicrafter_jax.data.cache.format import DTYPES, NETWORKS
from dynamicrafter_jax.data.clips import prompt_ids
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.training.inputs import pixels
from dynamicrafter_jax.training.keys import parameter_key
from dynamicrafter_jax.weights.load import abstract_params, origin
from dynamicrafter_jax.weights.warm_start import open_start


def local_mesh() -> Mesh:
    """Returns a mesh that splits batches over the devices of this process."""
    return sharding.make_mesh(data=-1, devices=jax.local_devices())


def load_networks(
    config: ConfigDict, names: Collection[str], mesh: Mesh
) -> tuple[dict[str, PyTree[Array]], dict[str, list[dict[str, Any]]]]:
    """Loads some networks, with the parameters that training would start from.

    Args:
        config: Its section `init` says where parameters come from; if all of it is unset, they are
            random.
        names: Which networks.
        mesh: Where to place them, replicated on every device.

    Returns:
        Their parameters; and for each network, names and SHA-256 of the files it came from, or the
        seed if it is random.

    Raises:
        UserError: A file can't be used, or a network is in none of the sources.
    """
    boxed = abstract_params(config)
    key = parameter_key(config.train.seed)
    origins = functools.cache(origin)
    with open_start(config, config.init, key, random_towers=True) as start:
        lacked = [name for name in names if name not in start.sources]
        if lacked and start.sources:
            raise UserError(
                f"the {' and the '.join(lacked)} would be random, since no source has them: "
                "give init.checkpoint or init.towers"
            )
        params = {
            name: traverse_util.unflatten_dict(
                {
                    path: sharding.replicate(start.leaf("/".join((name, *path))), mesh)
                    for path in traverse_util.flatten_dict(boxed[name])
                }
            )
            for name in names
        }
        random = [{"random_seed": config.train.seed}]
        weights = {n: random if lacked else origins(start.sources[n].path) for n in names}
    return params, weights


class NetworkEncoder:
    """A `data.cache.writer.FrameEncoder` that splits batches of frames over the devices of a mesh.

    Attributes:
        batch_size: Frames in a batch, over all devices.
        dtype: Type of the results, one of `data.cache.format.DTYPES`.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: dict[str, PyTree],
        mesh: Mesh,
        *,
        dtype: str,
        frames_per_device: int,
    ) -> None:
        """Takes the parameters; nothing is compiled yet.

        Args:
            config: A config, as in `configs/`.
            params: Parameters of the VAE, and of each tower whose outputs are cached.
            mesh: What batches are split over; parameters are replicated on its devices.
            dtype: See the attribute.
            frames_per_device: Frames that each device encodes at once.
        """
        models = networks_of(config, choose_attention(mesh))
        self.batch_size = frames_per_device * sharding.batch_multiple(mesh)
        self._config, self._params, self._mesh = config, params, mesh
        self._models, self._dtype, self.dtype = models, DTYPES[dtype], dtype
        bound = {"models": models, "dtype": self._dtype}
        self._frames = Program(functools.partial(encode_frames, **bound))
        self._texts = Program(functools.partial(encode_texts, **bound))
        self._zero = Program(functools.partial(encode_images, **bound))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each kind of output: moments, text states and vision tokens."""
        sampling = self._config.sampling
        frame = jax.ShapeDtypeStruct((1, sampling.height, sampling.width, 3), jnp.uint8)
        ids = jax.ShapeDtypeStruct((1, self._models.text_encoder.context_length), jnp.int32)
        bound = {"models": self._models, "dtype": self._dtype}
        found = jax.eval_shape(functools.partial(encode_frames, **bound), self._params, frame)
        if "text_encoder" in self._params:
            states = jax.eval_shape(functools.partial(encode_texts, **bound), self._params, ids)
            found["text"] = states
        return {kind: found[kind].shape[1:] for kind in NETWORKS if kind in found}

    def frames(self, frames: UInt8[np.ndarray, "n h w 3"]) -> dict[str, Array]:
        """Returns moments, and vision tokens if cached, without waiting for them."""
        return self._run(self._frames, frames)

    def captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n l d"]:
        """Returns the text states of captions."""
        length = self._models.text_encoder.context_length
        ids = np.stack([prompt_ids(caption, length) for caption in captions])
        padded = np.pad(ids, ((0, -len(ids) % self.batch_size), (0, 0)))
        states = [
            np.asarray(self._run(self._texts, part))
            for part in np.split(padded, len(padded) // self.batch_size)
        ]
        return np.concatenate(states)[: len(ids)]

    @functools.cached_property
    def _zero_tokens(self) -> np.ndarray:
        sampling = self._config.sampling
        shape = sharding.batch_multiple(self._mesh), sampling.height, sampling.width, 3
        return np.asarray(self._run(self._zero, np.zeros(shape, np.float32)))[0]

    def zero_image(self) -> Float[np.ndarray, "n e"]:
        """Returns the vision tokens of the zero image."""
        return self._zero_tokens

    def _run(self, program: Program, rows: np.ndarray) -> Any:
        with (
            matmul_precision(self._config),
            sharding.use_mesh(self._mesh),
        ):
            return program(self._params, sharding.split_batch(rows, self._mesh))


def encode_frames(
    params: PyTree, frames: UInt8[Array, "n h w 3"], *, models: Models, dtype: np.dtype
) -> dict[str, Array]:
    """Returns the VAE's unscaled `moments` of frames, and `vision` tokens if there is a tower."""
    images = pixels(frames)
    found = {"moments": models.apply("vae", params, images, method="moments").astype(dtype)}
    if "image_encoder" in params:
        found["vision"] = encode_images(params, images, models=models, dtype=dtype)
    return found


def encode_images(
    params: PyTree, images: Float[Array, "n h w 3"], *, models: Models, dtype: np.dtype
) -> Float[Array, "n tokens e"]:
    """Returns the vision tower's tokens of images in [-1, 1]."""
    return conditioning.image_tokens(models, params, images).astype(dtype)


def encode_texts(
    params: PyTree, ids: Int[Array, "n l"], *, models: Models, dtype: np.dtype
) -> Float[Array, "n l d"]:
    """Returns the text tower's states of token ids."""
    return conditioning.text_context(models, params, ids).astype(dtype)
