"""The training objective: the squared error of a denoiser's prediction."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from dynamicrafter_jax.diffusion.prediction import add_noise, float32, per_sample, target
from dynamicrafter_jax.diffusion.schedule import Schedule


@runtime_checkable
class Predict(Protocol):
    """A denoiser with its conditions bound, which predicts what the parameterization asks for."""

    def __call__(
        self, x: Float[Array, "b *shape"], timestep: Int[Array, " b"]
    ) -> Float[Array, "b *shape"]:
        """Returns the prediction for noisy samples."""
        ...


def denoising_loss(
    predict: Predict,
    schedule: Schedule,
    x0: Float[Array, "b *shape"],
    noise: Float[Array, "b *shape"],
    timestep: Int[Array, " b"],
) -> Float32[Array, " b"]:
    """Returns each sample's mean squared error (Eq. 14, arXiv 2006.11239; v: 2202.00512).

    Args:
        predict: The denoiser.
        schedule: Defines the levels of noise; x0 is first multiplied by its dynamic rescale.
        x0: Clean latents, scaled.
        noise: Standard normal noise.
        timestep: Timestep of each sample, 0 .. timesteps - 1.
    """
    scale, signal_level, noise_level = (
        jnp.asarray(table, jnp.float32)[timestep]
        for table in (schedule.scale, schedule.signal_level, schedule.noise_level)
    )
    x0 = per_sample(scale, x0) * float32(x0)
    levels = (signal_level, noise_level)
    error = float32(predict(add_noise(x0, noise, *levels), timestep))
    error -= target(schedule.parameterization, x0, noise, *levels)
    return jnp.square(error).mean(axis=range(1, x0.ndim))
