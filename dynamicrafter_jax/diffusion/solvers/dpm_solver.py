"""DPM-Solver++ of second order with one evaluation a step (arXiv 2211.01095)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32

from dynamicrafter_jax.diffusion.prediction import Parameterization, float32
from dynamicrafter_jax.diffusion.schedule import Grid
from dynamicrafter_jax.diffusion.solvers.base import (
    Denoised,
    FloatTable,
    check_eta,
    first_order_at_end,
    float32_table,
)


class DPMCoefficients(NamedTuple):
    """Tables of `DPMSolver`, float32, with one row per step, in sampling order.

    Attributes:
        timestep: Timestep that the denoiser is given.
        denoised: How to read its prediction.
        of_x: The factor on the sample.
        of_x0: The factor on the extrapolated x0.
        extrapolation: 1 / (2 r): how far to go on from the x0 of the step before to this one's.
        noise: Standard deviation of the fresh noise.
    """

    timestep: FloatTable
    denoised: Denoised
    of_x: FloatTable
    of_x0: FloatTable
    extrapolation: FloatTable
    noise: FloatTable


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M) and SDE-DPM-Solver++(2M).

    With alpha_i, sigma_i and lambda_i = log(alpha_i / sigma_i) at point i, h = lambda_i -
    lambda_{i-1}, r = h_{i-1} / h_i and D_i = x0_{i-1} + (x0_{i-1} - x0_{i-2}) / (2 r), a step is

        x_i = sigma_i / sigma_{i-1} exp(-eta h) x_{i-1} + alpha_i (1 - exp(-(1 + eta) h)) D_i
              + sigma_i sqrt(1 - exp(-2 eta h)) noise

    which is Algorithm 2 of the paper for eta = 0, and its stochastic form for eta = 1. From pure
    noise, h is infinite: exp(-h) is 0, the step lands on alpha_i x0 and noise of sigma_i, and the
    next one does not extrapolate, since 1 / r is 0.

    Attributes:
        parameterization: What the denoiser predicts, "eps" or "v".
        stochastic: Whether `eta` adds fresh noise; without it, there is none.
    """

    parameterization: Parameterization
    stochastic: bool

    def coefficients(self, grid: Grid, eta: float) -> DPMCoefficients:
        """Returns the tables over the points of a grid.

        Raises:
            UserError: `eta` is not in [0, 1].
        """
        check_eta(eta)
        eta = eta if self.stochastic else 0.0
        alpha, sigma = grid.alpha, grid.sigma
        shrinkage = alpha[:-1] / alpha[1:] * sigma[1:] / sigma[:-1]  # exp(-h), 0 from pure noise
        h = np.diff(grid.half_log_snr)
        extrapolation = np.append(0, h[1:] / (2 * h[:-1]))
        if first_order_at_end(grid):
            extrapolation[-1] = 0
        tables = (
            sigma[1:] / sigma[:-1] * shrinkage**eta,
            alpha[1:] * -np.expm1(-(1 + eta) * h),
            extrapolation,
            sigma[1:] * np.sqrt(1 - shrinkage ** (2 * eta)),
        )
        return DPMCoefficients(
            float32_table(grid.timestep),
            Denoised.over(grid, self.parameterization),
            *map(float32_table, tables),
        )

    def init(self, x: Float32[Array, "b *shape"]) -> Float32[Array, "b *shape"]:
        """Returns the state: the x0 of the step before, which the first step multiplies by 0."""
        return jnp.zeros_like(x)

    def step(
        self,
        state: Float32[Array, "b *shape"],
        x: Float32[Array, "b *shape"],
        prediction: Float[Array, "b *shape"],
        coefficients: DPMCoefficients,
        noise: Float[Array, "b *shape"],
    ) -> tuple[Float32[Array, "b *shape"], Float32[Array, "b *shape"]]:
        """Computes the sample at the next point from two predictions of x0."""
        row = coefficients
        x0 = row.denoised.x0(x, prediction)
        extrapolated = x0 + (x0 - state) * row.extrapolation
        x = x * row.of_x + extrapolated * row.of_x0
        if self.stochastic:
            x += float32(noise) * row.noise
        return x, x0
