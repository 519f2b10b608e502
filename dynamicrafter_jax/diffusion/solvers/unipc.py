"""UniPC: a predictor and a corrector that share evaluations (arXiv 2302.04867)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Float64

from dynamicrafter_jax.diffusion.prediction import Parameterization
from dynamicrafter_jax.diffusion.schedule import Grid
from dynamicrafter_jax.diffusion.solvers.base import (
    Denoised,
    FloatTable,
    first_order_at_end,
    float32_table,
)

Clip = Float32[Array, "b *shape"]


class Combination(NamedTuple):
    """Factors of one update, which is linear in all that it reads.

    Attributes:
        of_x: On the sample where the step begins.
        of_x0: On the x0 predicted there.
        of_x0_before: On the x0 predicted one step before.
        of_x0_after: On the x0 predicted where the step ends; 0 in a predictor.
    """

    of_x: FloatTable
    of_x0: FloatTable
    of_x0_before: FloatTable
    of_x0_after: FloatTable


class UniPCCoefficients(NamedTuple):
    """Tables of `UniPC`, float32, with one row per step, in sampling order.

    Attributes:
        timestep: Timestep that the denoiser is given.
        denoised: How to read its prediction.
        corrected: 1 where the sample is corrected before it goes on, 0 at the first step.
        corrector: The step before, done again now that its end is known.
        predictor: This step.
    """

    timestep: FloatTable
    denoised: Denoised
    corrected: FloatTable
    corrector: Combination
    predictor: Combination


class History(NamedTuple):
    """What `UniPC` keeps between steps.

    Attributes:
        x: The corrected sample where the step before began.
        x0: The x0 predicted there.
        x0_before: The x0 predicted one step earlier.
    """

    x: Clip
    x0: Clip
    x0_before: Clip


@dataclass(frozen=True)
class UniPC:
    """UniPC-2 with B(h) = exp(h) - 1, predicting x0; its order of accuracy is 3.

    With alpha_i, sigma_i and lambda_i = log(alpha_i / sigma_i) at point i and h = lambda_i -
    lambda_{i-1}, predictor and corrector (Algorithms 2 and 1, in their form for x0) are

        x_i = sigma_i / sigma_{i-1} x_{i-1} + alpha_i (1 - exp(-h)) (x0_{i-1} + sum_m a_m D_m)

    where D_m = (x0_m - x0_{i-1}) / r_m and r_m = (lambda_m - lambda_{i-1}) / h, with the points
    m = i - 2 for the predictor, and also m = i for the corrector. From pure noise h is infinite:
    the step then reads x0 where it begins and, corrected, the mean of both ends, as the
    trapezoidal rule does over alpha_t / sigma_t; the next one reads nothing that lies before it.

    Attributes:
        parameterization: What the denoiser predicts, "eps" or "v".
    """

    parameterization: Parameterization

    def coefficients(self, grid: Grid, eta: float) -> UniPCCoefficients:
        """Returns the tables over the points of a grid; there is no fresh noise, whatever `eta`."""
        steps = len(grid.timestep)
        first_order = {0, steps - 1} if first_order_at_end(grid) else {0}
        predictors = [_combination(grid, i, i not in first_order, False) for i in range(steps)]
        correctors = [np.zeros(4)] + [_combination(grid, i, i > 0, True) for i in range(steps - 1)]
        return UniPCCoefficients(
            float32_table(grid.timestep),
            Denoised.over(grid, self.parameterization),
            float32_table(np.arange(steps) > 0),
            *(
                Combination(*map(float32_table, np.transpose(rows)))
                for rows in (correctors, predictors)
            ),
        )

    def init(self, x: Clip) -> History:
        """Returns the state before the first step, which multiplies it by 0."""
        zeros = jnp.zeros_like(x)
        return History(zeros, zeros, zeros)

    def step(
        self,
        state: History,
        x: Clip,
        prediction: Float[Array, "b *shape"],
        coefficients: UniPCCoefficients,
        noise: Float[Array, "b *shape"],
    ) -> tuple[Clip, History]:
        """Corrects the sample by the prediction there, and predicts the one at the next point."""
        row = coefficients
        x0 = row.denoised.x0(x, prediction)
        again = _combine(row.corrector, state.x, state.x0, state.x0_before, x0)
        x = again * row.corrected + x * (1 - row.corrected)
        after = _combine(row.predictor, x, x0, state.x0, jnp.zeros_like(x0))
        return after, History(x, x0, state.x0)


def _combine(factors: Combination, x: Clip, x0: Clip, x0_before: Clip, x0_after: Clip) -> Clip:
    known = x * factors.of_x + x0 * factors.of_x0
    return known + x0_before * factors.of_x0_before + x0_after * factors.of_x0_after


def _combination(
    grid: Grid, begin: int, second_order: bool, corrects: bool
) -> Float64[np.ndarray, "4"]:
    """Returns the factors of the step from point `begin`, in the order of `Combination`.

    Args:
        grid: The points.
        begin: Where the step begins.
        second_order: Whether it also reads the x0 of one step before.
        corrects: Whether it also reads the x0 where the step ends.
    """
    end = begin + 1
    alpha, sigma, lam = grid.alpha, grid.sigma, grid.half_log_snr
    h = lam[end] - lam[begin]
    if h == 0:
        return np.array([1.0, 0, 0, 0])
    reach = -np.expm1(-h)
    positions, x0_before, x0_after = [], 0.0, 0.0
    if second_order and np.isfinite(lam[begin - 1]):
        positions.append((lam[begin - 1] - lam[begin]) / h)
    if corrects:
        positions.append(1.0)
    weights = _weights(h, np.array(positions)) / np.array(positions)
    if corrects:
        *weights, x0_after = weights
    if len(weights):
        (x0_before,) = weights
    factors = [1 - x0_before - x0_after, x0_before, x0_after]
    return np.array([sigma[end] / sigma[begin], *(alpha[end] * reach * np.array(factors))])


def _weights(h: float, positions: Float64[np.ndarray, "points"]) -> Float64[np.ndarray, "points"]:
    """Returns a_m for points at `positions` r_m.

    They make the update exact for x0 that are polynomials of lambda. A single point has a_m = 1/2,
    whatever h, as the paper recommends.
    """
    count = len(positions)
    if count < 2:
        return np.full(count, 0.5)
    # h phi_{k+1}(-h) k! / B(-h): the moments of the exponential weight over the step.
    moments, factorial = [], 1.0
    moment = np.expm1(-h) / -h - 1
    for k in range(1, count + 1):
        factorial *= k
        moments.append(moment * factorial / np.expm1(-h))
        moment = moment / -h - 1 / (factorial * (k + 1))
    powers = positions[None, :] ** np.arange(count)[:, None]
    return np.linalg.solve(powers, np.array(moments))
