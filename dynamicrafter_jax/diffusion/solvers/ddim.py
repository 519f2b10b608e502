"""Denoising diffusion implicit models (arXiv 2010.02502), the solver of the release."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32

from dynamicrafter_jax.diffusion.prediction import Parameterization, float32, to_x0_and_eps
from dynamicrafter_jax.diffusion.schedule import Grid
from dynamicrafter_jax.diffusion.solvers.base import FloatTable, State, check_eta, float32_table


class DDIMCoefficients(NamedTuple):
    """Tables of `DDIM`, float32, with one row per step, highest timestep first.

    Attributes:
        timestep: Timestep that the denoiser is given.
        alpha_bar: alpha_bar at this timestep.
        alpha_bar_prev: alpha_bar at the next lower timestep visited; alpha_bar[0] after the lowest.
        sigma: Standard deviation of the fresh noise.
        direction: sqrt(1 - alpha_bar_prev - sigma^2), the factor on the predicted noise.
        scale_ratio: s_prev / s, the dynamic rescale of x0 for the next timestep.
    """

    timestep: FloatTable
    alpha_bar: FloatTable
    alpha_bar_prev: FloatTable
    sigma: FloatTable
    direction: FloatTable
    scale_ratio: FloatTable


def ddim_coefficients(grid: Grid, eta: float) -> DDIMCoefficients:
    """Returns the tables of DDIM over the points of a grid (Eq. 12 and 16, arXiv 2010.02502).

    As in the release, x0 keeps the scale of the lowest timestep visited to the end.

    Args:
        grid: The points to visit.
        eta: Share of fresh noise, 0 (deterministic) to 1 (as much as DDPM).

    Raises:
        UserError: `eta` is not in [0, 1].
    """
    check_eta(eta)
    alpha_bar, alpha_bar_prev = grid.alpha_bar[:-1], grid.alpha_bar[1:]
    scale = grid.scale[:-1]
    scale_prev = np.append(scale[1:], scale[-1])
    # sigma^2 / (1 - alpha_bar_prev), from which the direction is computed as a product: the
    # difference 1 - alpha_bar_prev - sigma^2 is exactly 0 at alpha_bar = 0 and eta = 1, where
    # rounding could make it negative.
    fresh_share = eta**2 * (1 - alpha_bar / alpha_bar_prev) / (1 - alpha_bar)
    noise_variance_prev = 1 - alpha_bar_prev
    tables = (
        grid.timestep,
        alpha_bar,
        alpha_bar_prev,
        np.sqrt(noise_variance_prev * fresh_share),
        np.sqrt(np.maximum(0, noise_variance_prev * (1 - fresh_share))),
        scale_prev / scale,
    )
    return DDIMCoefficients(*map(float32_table, tables))


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Eq. 12, arXiv 2010.02502); keeps no state.

    As in the PyTorch release, fresh noise is added at the lowest timestep too, so the result is a
    sample at timestep 0, not x0 itself.

    Attributes:
        parameterization: What the denoiser predicts, "eps" or "v".
    """

    parameterization: Parameterization

    def coefficients(self, grid: Grid, eta: float) -> DDIMCoefficients:
        """See `ddim_coefficients`."""
        return ddim_coefficients(grid, eta)

    def init(self, x: Float32[Array, "b *shape"]) -> State:
        """Returns the empty state, since DDIM keeps none."""
        return ()

    def step(
        self,
        state: State,
        x: Float32[Array, "b *shape"],
        prediction: Float[Array, "b *shape"],
        coefficients: DDIMCoefficients,
        noise: Float[Array, "b *shape"],
    ) -> tuple[Float32[Array, "b *shape"], State]:
        """Computes the sample at the next lower timestep from the predicted x0 and eps."""
        x0, eps = to_x0_and_eps(self.parameterization, x, prediction, coefficients.alpha_bar)
        # Only x0 is rescaled: eps was derived from x and the unscaled x0.
        mean = jnp.sqrt(coefficients.alpha_bar_prev) * coefficients.scale_ratio * x0
        fresh_noise = coefficients.sigma * float32(noise)
        return mean + coefficients.direction * eps + fresh_noise, state
