"""Counts passes of the U-Net, which is what sampling takes time for.

A pass is one evaluation of the whole U-Net for one clip; one that reuses the deep part counts by
its share of the operations.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamicrafter_jax.conditioning import Conditioning, reusing_unet
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training.throughput import product_flops


def unet_passes(animate: ImageToVideo, settings: Mapping[str, Any]) -> float:
    """Returns how many passes of the U-Net a clip takes."""
    chosen = SamplingSettings.from_config(animate.config.sampling, **settings)
    method, tables = stages.make_steps(animate.models, animate.sampler.schedule, chosen)
    steps = len(tables.coefficients.timestep)
    caches = tables.caches
    every = np.ones(steps, bool) if caches.guidance is None else caches.guidance.all_passes
    passes = np.where(every, chosen.num_passes, 1)
    if method.depth is not None and caches.deep is not None:
        share = shallow_share(animate, chosen, method.depth)
        passes = passes * np.where(caches.deep, 1, share)
    return float(passes.sum())


def shallow_share(animate: ImageToVideo, settings: SamplingSettings, depth: int) -> float:
    """Returns the operations of a pass that reuses the deep part, relative to a whole one."""
    models, shape = animate.models, (1, *stages.latent_shape(animate.models, settings))
    projector, width = models.projector, models.unet.context_dim
    tokens = projector.num_queries
    condition = Conditioning(
        text=jnp.zeros((1, models.text_encoder.context_length, width)),
        image=jnp.zeros((1, projector.video_length, tokens, width)),
        concat=jnp.zeros((*shape[:-1], models.unet.in_channels - shape[-1])),
        fs=jnp.zeros(1),
    )
    feature = models.unet.deep_feature(shape, depth)
    run = jax.jit(reusing_unet(models, animate.params, depth))
    inputs = jnp.zeros(shape), jnp.zeros(1), condition
    whole, shallow = (
        product_flops(run.trace(*inputs, *deep).jaxpr)
        for deep in ((), (jnp.zeros(feature.shape, feature.dtype),))
    )
    return shallow / whole
