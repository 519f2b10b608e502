"""Encodes the inputs of batches: each text and image once, even if many rows share it."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.media import Window
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.bulk.table import Request
from dynamicrafter_jax.sampling.noise import KeyedNoise, Noise
from dynamicrafter_jax.sampling.sampler import Sampler

# Encodings of each kind that are kept; a full-size model's take about a megabyte per device.
_KEPT = 64


class Row(NamedTuple):
    """A request with its images and texts read.

    Attributes:
        request: The request.
        first: The image in [-1, 1].
        last: The image to end at, or None.
        window: The part of the frames to show.
        image_hash: Hash of the image's file.
        end_hash: Hash of the file of the image to end at.
        ids: Token ids of the prompt.
        negative_ids: Token ids that the unconditional pass reads.
    """

    request: Request
    first: Float32[np.ndarray, "h w 3"]
    last: Float32[np.ndarray, "h w 3"] | None
    window: Window
    image_hash: str
    end_hash: str | None
    ids: Int32[np.ndarray, " l"]
    negative_ids: Int32[np.ndarray, " l"]

    @property
    def image_key(self) -> Hashable:
        """Key of the image: rows with the same key have the same image."""
        return self.image_hash, self.request.settings.fit, self.request.settings.size

    @property
    def end_key(self) -> Hashable:
        """Key of the image to end at, likewise."""
        settings = self.request.settings
        return self.end_hash or self.image_hash, settings.fit, settings.size


class Recent:
    """A cache of the most recently used results, by key."""

    def __init__(self, size: int) -> None:
        """Makes an empty cache of up to `size` results."""
        self._size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the result for `key`, calling `make` if it is not in the cache."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return self._kept[key]


class RowEncoder:
    """Encodes the rows of batches, without waiting for the device.

    Each text or image goes through its network by itself, so its encoding does not depend on the
    batch that it is first used in.

    Attributes:
        texts: The program of the text tower.
        images: The program of the vision tower and the projector.
        posteriors: The program of the VAE.
    """

    def __init__(self, sampler: Sampler, params: PyTree) -> None:
        """Takes the parameters; programs compile when they are first called."""
        models = sampler.models
        self._sampler = sampler
        self._params = params
        self.texts, self.images, self.posteriors = _programs(models)
        self._assemble = Program(functools.partial(_assemble, models, sampler.mesh))
        self._kept = {program: Recent(_KEPT) for program in (self.texts, self.images)}
        self._kept[self.posteriors] = Recent(_KEPT)

    def __call__(self, rows: Sequence[Row], draws: KeyedNoise) -> tuple[Conditioning, ...]:
        """Returns what each guided pass of a batch is conditioned on, split over the mesh.

        Args:
            rows: Rows of one bucket, as many as the mesh can split.
            draws: One key for each row, placed on the mesh.
        """
        settings = rows[0].request.settings
        shape = stages.latent_shape(self._sampler.models, settings)
        firsts = tuple(self._posterior(row.image_key, row.first, shape) for row in rows)
        lasts = tuple(
            self._posterior(row.end_key, row.last, shape) for row in rows if row.last is not None
        )
        images = tuple(self._once(self.images, row.image_key, row.first[None]) for row in rows)
        texts = tuple(self._text(row.ids) for row in rows)
        negatives = no_image = None
        if settings.num_passes > 1:
            negatives = tuple(self._text(row.negative_ids) for row in rows)
            grey = np.zeros_like(rows[0].first)[None]
            no_image = self._once(self.images, settings.size, grey)
        fs = np.asarray([row.request.settings.fps for row in rows], np.float32)
        parts = (texts, images, firsts, lasts or None, negatives, no_image)
        fs = sharding.split_batch(fs, self._sampler.mesh)
        static = {"shape": shape, "num_passes": settings.num_passes}
        return self._run(self._assemble, *parts, fs, draws, **static)

    def _text(self, ids: Int32[np.ndarray, " l"]) -> Array:
        return self._once(self.texts, ids.tobytes(), ids[None])

    def _posterior(
        self, key: Hashable, image: Float32[np.ndarray, "h w 3"], shape: tuple[int, ...]
    ) -> PyTree:
        return self._once(self.posteriors, key, image[None], shape=shape)

    def _once(self, program: Program, key: Hashable, value: np.ndarray, **static: Any) -> Any:
        """Runs a program, unless its result for the same content is still in the cache."""

        def make() -> Any:
            placed = sharding.replicate(value, self._sampler.mesh)
            return self._run(program, self._params, placed, **static)

        return self._kept[program].get(key, make)

    def _run(self, program: Program, *args: Any, **static: Any) -> Any:
        return self._sampler.compiled(program, *args, **static)(*args)


@functools.lru_cache(maxsize=4)
def _programs(models: Models) -> tuple[Program, Program, Program]:
    """The encoders of some networks, which all parameters share."""
    text, image, posterior = (
        Program(functools.partial(stage, models))
        for stage in (stages.encode_text, stages.encode_image, stages.encode_posterior)
    )
    return text, image, posterior


def _assemble(
    models: Models,
    mesh: Mesh,
    texts: Sequence[Array],
    images: Sequence[Array],
    firsts: Sequence[PyTree],
    lasts: Sequence[PyTree] | None,
    negatives: Sequence[Array] | None,
    no_image: Array | None,
    fs: Array,
    noise: Noise,
    *,
    shape: tuple[int, int, int, int],
    num_passes: int,
) -> tuple[Conditioning, ...]:
    """Combines the encodings of rows into a batch."""

    def batch(rows: Sequence[PyTree] | None) -> PyTree:
        return (
            None if rows is None else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
        )

    encoded = stages.Encoded(
        batch(texts), batch(images), batch(firsts), batch(lasts), batch(negatives), no_image
    )
    conditions = stages.assemble(models, encoded, fs, noise, shape=shape, num_passes=num_passes)
    if len(texts) % sharding.batch_multiple(mesh):
        return conditions  # replicated, as `sharding.split_batch` leaves such a batch
    return jax.lax.with_sharding_constraint(conditions, sharding.batch_sharding(mesh))
