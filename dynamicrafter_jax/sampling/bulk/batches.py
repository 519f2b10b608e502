"""Which requests go through the networks together, and their way through, without waiting."""

from collections.abc import Hashable, Iterable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.sampling.bulk.encoder import Encoder, Row
from dynamicrafter_jax.sampling.bulk.table import Request
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import Sampler


class BatchSampler:
    """Samples batches of one size on a sampler's mesh.

    Attributes:
        sampler: The compiled stages.
        encoder: What encodes each text and image once.
    """

    def __init__(self, sampler: Sampler, params: PyTree, batch_size: int) -> None:
        """Binds the parameters, which are on the mesh."""
        self.sampler = sampler
        self.encoder = Encoder(sampler, params)
        self._params = params
        self._batch_size = batch_size

    def __call__(
        self, rows: Sequence[Row]
    ) -> tuple[Float32[Array, "b t h w z"], Float32[Array, "b t h2 w2 3"]]:
        """Returns latents and unclipped frames, which the device may be working on still.

        To be called under `Sampler.in_force`; by all processes that share the mesh.

        Args:
            rows: Up to `batch_size`, of one bucket. Where some are missing, the last is repeated:
                what is made of them is to be ignored.
        """
        rows = [*rows, *[rows[-1]] * (self._batch_size - len(rows))]
        settings = [row.request.settings for row in rows]
        keys = [
            KeyedNoise.from_seed(s.seed, [r.request.sample_index]).keys
            for s, r in zip(settings, rows, strict=True)
        ]
        draws = sharding.split_batch(KeyedNoise(jnp.concatenate(keys)), self.sampler.mesh)
        conditions = self.encoder(rows, draws)
        latents = self.sampler.denoise(self._params, conditions, settings, draws)
        video = self.sampler.decode(self._params, latents, settings[0])
        return self.sampler.to_every_process(latents), self.sampler.to_every_process(video)


def bucket(request: Request) -> tuple[int, bool, int, int, int]:
    """Returns what decides the compiled program: guided passes, whether the end is given, size."""
    return request.settings.num_passes, request.has_end, *request.settings.size


def plan_batches(requests: Iterable[Request], batch_size: int) -> list[tuple[Request, ...]]:
    """Groups requests into batches of `batch_size`, the last of each kind perhaps smaller.

    Requests of a batch share a program and the solver's tables (steps, eta, spacing); scales,
    `fps`, seeds and texts are their own. Which requests meet in a batch, and where, does not
    depend on the order of the rows nor on what is finished already: a clip's bytes can't either.
    Those of one image, then of one prompt, are neighbours, so that what was encoded is found again.

    Args:
        requests: In any order.
        batch_size: Clips a batch.
    """
    groups: dict[tuple, list[Request]] = {}
    for request in sorted(requests, key=_neighbours):
        groups.setdefault((*bucket(request), *_tables(request)), []).append(request)
    return [
        tuple(group[start : start + batch_size])
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


def _neighbours(request: Request) -> tuple[str, ...]:
    return request.image, request.end_image or "", request.prompt, request.name


def _tables(request: Request) -> tuple[Hashable, ...]:
    return request.settings.steps, request.settings.eta, request.settings.spacing
