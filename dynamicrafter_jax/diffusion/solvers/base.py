"""What a solver is, and how solvers of the clean sample x0 read a denoiser's prediction."""

from typing import Any, NamedTuple, Protocol, TypeVar, assert_never, runtime_checkable

import numpy as np
from jax import Array
from jaxtyping import Float, Float32

from dynamicrafter_jax.diffusion.prediction import Parameterization, float32
from dynamicrafter_jax.diffusion.schedule import Grid
from dynamicrafter_jax.errors import UserError

FloatTable = Float32[Array | np.ndarray, "*steps"]

State = Any
"""What a solver keeps from one step to the next: any pytree, () for nothing."""


@runtime_checkable
class Coefficients(Protocol):
    """A pytree of arrays with one row per step, in sampling order: highest timestep first."""

    @property
    def timestep(self) -> FloatTable:
        """The timesteps that the denoiser is given."""
        ...


CoefficientsT = TypeVar("CoefficientsT", bound=Coefficients)


@runtime_checkable
class Solver(Protocol[CoefficientsT]):
    """Takes steps; frozen and hashable, so it can be a static argument of `jax.jit`."""

    def coefficients(self, grid: Grid, eta: float) -> CoefficientsT:
        """Returns tables for the points to visit, and a share `eta` of fresh noise, 0 to 1.

        Solvers without fresh noise take any `eta` as 0.
        """
        ...

    def init(self, x: Float32[Array, "b *shape"]) -> State:
        """Returns the state before the first step from `x`."""
        ...

    def step(
        self,
        state: State,
        x: Float32[Array, "b *shape"],
        prediction: Float[Array, "b *shape"],
        coefficients: CoefficientsT,
        noise: Float[Array, "b *shape"],
    ) -> tuple[Float32[Array, "b *shape"], State]:
        """Returns the next sample and state, from the denoiser's prediction at `x` and one row."""
        ...


class Denoised(NamedTuple):
    """Tables that turn a denoiser's prediction into x0, with one row per step.

    Attributes:
        of_x: The factor on the noisy sample.
        of_prediction: The factor on the prediction.
    """

    of_x: FloatTable
    of_prediction: FloatTable

    @classmethod
    def over(cls, grid: Grid, parameterization: Parameterization) -> "Denoised":
        """Returns the tables for the points where the denoiser is evaluated.

        A denoiser predicts the rescaled s_t x0. Solvers with a memory compare predictions of
        different timesteps, which takes x0 itself.
        """
        signal_level, sigma = np.sqrt(grid.alpha_bar[:-1]), grid.sigma[:-1]
        match parameterization:
            case "eps":
                tables = 1 / signal_level, -sigma / signal_level
            case "v":
                tables = signal_level, -sigma
            case _:
                assert_never(parameterization)
        of_x, of_prediction = (float32_table(table / grid.scale[:-1]) for table in tables)
        return cls(of_x, of_prediction)

    def x0(
        self, x: Float32[Array, "b *shape"], prediction: Float[Array, "b *shape"]
    ) -> Float32[Array, "b *shape"]:
        """Returns x0, without clipping; `self` is one row."""
        return x * self.of_x + float32(prediction) * self.of_prediction


def float32_table(values: np.ndarray) -> FloatTable:
    """Rounds a table, computed in float64, to what the loop uses."""
    return values.astype(np.float32)


def check_eta(eta: float) -> None:
    """Refuses a share of fresh noise that is not in [0, 1].

    Raises:
        UserError: It is not.
    """
    if not 0 <= eta <= 1:
        raise UserError(
            f"sampling.eta is {eta}: choose from 0 (deterministic) to 1 (as noisy as DDPM)"
        )


_FEW_STEPS = 15
_LONG_STEP = 1.5


def first_order_at_end(grid: Grid) -> bool:
    """Whether a multistep method takes its last step at first order.

    It does with fewer than 15 steps, as the authors of DPM-Solver++ do (arXiv 2211.01095), and
    wherever the last step is half as long again as the one before, in lambda: extrapolation then
    reaches too far and overshoots. Evenly spaced timesteps make it four times as long, and without
    this rule 20 of them do worse than 10.
    """
    h = np.diff(grid.half_log_snr)
    return len(h) < _FEW_STEPS or bool(h[-1] > _LONG_STEP * h[-2])
