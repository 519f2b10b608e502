"""Solvers, which step from a noisier sample to a cleaner one.

A solver makes coefficients, a pytree of tables computed on the host, and takes steps, each a pure
function of one row of them. The tables are arguments of the compiled loop, so changing eta, or
timesteps but not their number, does not recompile it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int, Int32

from dynamicrafter_jax.diffusion.prediction import Parameterization, float32, to_x0_and_eps
from dynamicrafter_jax.diffusion.schedule import Schedule
from dynamicrafter_jax.errors import UserError

IntTable = Int32[Array | np.ndarray, "*steps"]
FloatTable = Float32[Array | np.ndarray, "*steps"]

State = Any
"""What a solver keeps from one step to the next: any pytree, () for nothing."""


@runtime_checkable
class Coefficients(Protocol):
    """A pytree of arrays with one row per step, in sampling order: highest timestep first."""

    @property
    def timestep(self) -> IntTable:
        """The timesteps that the denoiser is given."""
        ...


CoefficientsT = TypeVar("CoefficientsT", bound=Coefficients)


@runtime_checkable
class Solver(Protocol[CoefficientsT]):
    """Takes steps; frozen and hashable, so it can be a static argument of `jax.jit`."""

    def coefficients(
        self, schedule: Schedule, timesteps: Int[np.ndarray, "steps"], eta: float
    ) -> CoefficientsT:
        """Returns tables for ascending timesteps to visit, and a share `eta` of fresh noise.

        Raises:
            UserError: `eta` is not in [0, 1].
            ValueError: `timesteps` are not strictly ascending or not in the schedule.
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


class DDIMCoefficients(NamedTuple):
    """Tables of `DDIM`, float32, with one row per step, highest timestep first.

    Attributes:
        timestep: Timestep that the denoiser is given, int32.
        alpha_bar: alpha_bar at this timestep.
        alpha_bar_prev: alpha_bar at the next lower timestep visited; alpha_bar[0] after the lowest.
        sigma: Standard deviation of the fresh noise.
        direction: sqrt(1 - alpha_bar_prev - sigma^2), the factor on the predicted noise.
        scale_ratio: s_prev / s, the dynamic rescale of x0 for the next timestep.
    """

    timestep: IntTable
    alpha_bar: FloatTable
    alpha_bar_prev: FloatTable
    sigma: FloatTable
    direction: FloatTable
    scale_ratio: FloatTable


def ddim_coefficients(
    schedule: Schedule, timesteps: Int[np.ndarray, "steps"], eta: float
) -> DDIMCoefficients:
    """Returns the tables of DDIM over the chosen timesteps (Eq. 12 and 16, arXiv 2010.02502).

    Args:
        schedule: The model's schedule.
        timesteps: Timesteps to visit, strictly ascending, as `spaced_timesteps` returns them.
        eta: Share of fresh noise, 0 (deterministic) to 1 (as much as DDPM).

    Raises:
        UserError: `eta` is not in [0, 1].
        ValueError: `timesteps` are not strictly ascending or not in the schedule.
    """
    if not 0 <= eta <= 1:
        raise UserError(
            f"sampling.eta is {eta}: choose from 0 (deterministic) to 1 (as noisy as DDPM)"
        )
    bounded = np.concatenate([[-1], timesteps, [len(schedule.alpha_bar)]])
    if np.any(np.diff(bounded) <= 0):
        raise ValueError(
            f"timesteps {timesteps} must ascend strictly within 0 .. {len(schedule.alpha_bar) - 1}"
        )
    alpha_bar, scale = schedule.alpha_bar[timesteps], schedule.scale[timesteps]
    alpha_bar_prev = np.append(schedule.alpha_bar[0], alpha_bar[:-1])
    scale_prev = np.append(scale[0], scale[:-1])
    # sigma^2 / (1 - alpha_bar_prev), from which the direction is computed as a product: the
    # difference 1 - alpha_bar_prev - sigma^2 is exactly 0 at alpha_bar = 0 and eta = 1, where
    # rounding could make it negative.
    fresh_share = eta**2 * (1 - alpha_bar / alpha_bar_prev) / (1 - alpha_bar)
    noise_variance_prev = 1 - alpha_bar_prev
    tables = {
        "alpha_bar": alpha_bar,
        "alpha_bar_prev": alpha_bar_prev,
        "sigma": np.sqrt(noise_variance_prev * fresh_share),
        "direction": np.sqrt(np.maximum(0, noise_variance_prev * (1 - fresh_share))),
        "scale_ratio": scale_prev / scale,
    }
    return DDIMCoefficients(
        timestep=timesteps[::-1].astype(np.int32),
        **{name: table[::-1].astype(np.float32) for name, table in tables.items()},
    )


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Eq. 12, arXiv 2010.02502); keeps no state.

    As in the PyTorch release, fresh noise is added at the lowest timestep too, so the result is a
    sample at timestep 0, not x0 itself.

    Attributes:
        parameterization: What the denoiser predicts, "eps" or "v".
    """

    parameterization: Parameterization

    def coefficients(
        self, schedule: Schedule, timesteps: Int[np.ndarray, "steps"], eta: float
    ) -> DDIMCoefficients:
        """See `ddim_coefficients`."""
        return ddim_coefficients(schedule, timesteps, eta)

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
