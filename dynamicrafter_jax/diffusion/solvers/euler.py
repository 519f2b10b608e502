"""Euler's method on the probability flow ODE, and its ancestral form (arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Float32

from dynamicrafter_jax.diffusion.prediction import Parameterization, float32
from dynamicrafter_jax.diffusion.schedule import Grid
from dynamicrafter_jax.diffusion.solvers.base import (
    Denoised,
    FloatTable,
    State,
    check_eta,
    float32_table,
)


class EulerCoefficients(NamedTuple):
    """Tables of `Euler`, float32, with one row per step, in sampling order.

    Attributes:
        timestep: Timestep that the denoiser is given.
        denoised: How to read its prediction.
        of_x: The factor on the sample.
        of_x0: The factor on x0.
        noise: Standard deviation of the fresh noise.
    """

    timestep: FloatTable
    denoised: Denoised
    of_x: FloatTable
    of_x0: FloatTable
    noise: FloatTable


@dataclass(frozen=True)
class Euler:
    """Euler's method in sigma_t / alpha_t, over which x_t / alpha_t has a straight tangent.

    A step goes down to sigma_down along the tangent (x - x0) / sigma (Algorithm 1 of the paper,
    without churn) and, in the ancestral form, back up with fresh noise of sigma_up, where
    sigma_down^2 + sigma_up^2 = sigma_i^2 and sigma_up = eta sigma_i sqrt(1 - sigma_i^2 /
    sigma_{i-1}^2), all of them divided by alpha. Multiplied by alpha_i, it is finite from pure
    noise. Without a dynamic rescale it is DDIM with the same `eta`; with one, it differs in the
    ancestral noise, and ends at the unscaled x0.

    Attributes:
        parameterization: What the denoiser predicts, "eps" or "v".
        stochastic: Whether `eta` adds fresh noise; without it, there is none.
    """

    parameterization: Parameterization
    stochastic: bool

    def coefficients(self, grid: Grid, eta: float) -> EulerCoefficients:
        """Returns the tables over the points of a grid.

        Raises:
            UserError: `eta` is not in [0, 1].
        """
        check_eta(eta)
        eta = eta if self.stochastic else 0.0
        alpha, sigma = grid.alpha, grid.sigma
        shrinkage = alpha[:-1] / alpha[1:] * sigma[1:] / sigma[:-1]
        noise = eta * sigma[1:] * np.sqrt(1 - shrinkage**2)
        of_x = np.sqrt(sigma[1:] ** 2 - noise**2) / sigma[:-1]
        tables = of_x, alpha[1:] - of_x * alpha[:-1], noise
        return EulerCoefficients(
            float32_table(grid.timestep),
            Denoised.over(grid, self.parameterization),
            *map(float32_table, tables),
        )

    def init(self, x: Float32[Array, "b *shape"]) -> State:
        """Returns the empty state: Euler's method remembers nothing."""
        return ()

    def step(
        self,
        state: State,
        x: Float32[Array, "b *shape"],
        prediction: Float[Array, "b *shape"],
        coefficients: EulerCoefficients,
        noise: Float[Array, "b *shape"],
    ) -> tuple[Float32[Array, "b *shape"], State]:
        """Computes the sample at the next point from the predicted x0."""
        row = coefficients
        x = x * row.of_x + row.denoised.x0(x, prediction) * row.of_x0
        if self.stochastic:
            x += float32(noise) * row.noise
        return x, state
