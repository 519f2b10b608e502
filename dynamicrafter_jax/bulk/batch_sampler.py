"""Batches through the networks, queued on the device without waiting for what they become."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.bulk.encoder import Encoder, Row
from dynamicrafter_jax.noise import KeyedNoise
from dynamicrafter_jax.sampler import Sampler


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
