"""Groups requests into batches, and samples a batch without waiting for the device."""

from collections.abc import Hashable, Iterable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.sampling.bulk.encoder import Row, RowEncoder
from dynamicrafter_jax.sampling.bulk.table import Request
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import Sampler


class BatchSampler:
    """Samples batches of one size on a sampler's mesh.

    Attributes:
        sampler: The compiled stages.
        encoder: Encodes each text and image once.
    """

    def __init__(self, sampler: Sampler, params: PyTree, batch_size: int) -> None:
        """Takes the parameters, placed on the mesh."""
        self.sampler = sampler
        self.encoder = RowEncoder(sampler, params)
        self._params = params
        self._batch_size = batch_size

    def __call__(
        self, rows: Sequence[Row]
    ) -> tuple[Float32[Array, "b t h w z"], Float32[Array, "b t h2 w2 3"]]:
        """Returns latents and unclipped frames, which the device may still be computing.

        Must be called within `Sampler.in_force`, by all processes that share the mesh.

        Args:
            rows: Up to `batch_size` rows of one bucket. If there are fewer, the last is repeated,
                and the surplus results must be ignored.
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


def bucket(request: Request) -> tuple[Hashable, ...]:
    """Returns what the compiled program depends on: solver, passes, whether it has an end, size."""
    settings = request.settings
    return settings.solver, settings.num_passes, request.has_end, *settings.size


def plan_batches(requests: Iterable[Request], batch_size: int) -> list[tuple[Request, ...]]:
    """Groups requests into batches of `batch_size`; the last batch of each kind may be smaller.

    Requests in a batch share a program and the solver's tables (steps, eta, spacing, caches);
    they may differ in scales, `fps`, seeds and texts. Batches depend neither on the order of the
    rows nor on what is finished already, and so a clip's bytes don't either. Requests with the same
    image, then with the same prompt, are neighbours, so that encodings are reused.

    Args:
        requests: Requests, in any order.
        batch_size: Clips in a batch.
    """
    groups: dict[tuple, list[Request]] = {}
    for request in sorted(requests, key=_neighbours):
        groups.setdefault((*bucket(request), *_tables(request)), []).append(request)
    return [
        tuple(group[start : start + batch_size])
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


_PER_STEP = (
    *("steps", "eta", "spacing", "deep_cache_interval", "deep_cache_depth"),
    *("guidance_start", "guidance_stop", "guidance_reuse_interval"),
)


def _neighbours(request: Request) -> tuple[str, ...]:
    return request.image, request.end_image or "", request.prompt, request.name


def _tables(request: Request) -> tuple[Hashable, ...]:
    settings = request.settings
    return tuple(getattr(settings, name) for name in _PER_STEP)
