"""Runs all steps of a sampler as one compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from dynamicrafter_jax.diffusion.prediction import float32
from dynamicrafter_jax.diffusion.solvers import CoefficientsT, Solver, State

Carry = Any
"""What a denoiser keeps from one step to the next: any pytree, () for nothing."""

Denoiser = Callable[[Array, Array, Array, Carry], tuple[Array, Carry]]
"""(x (b, ...), timestep (b,), index (), carry) -> (prediction (b, ...), carry).

`index` is the number of the step, 0 for the highest timestep."""


class LoopState(NamedTuple):
    """What passes from step to step.

    Attributes:
        x: The current sample, float32 whatever dtype the denoiser returns.
        solver: The solver's state.
        carry: The denoiser's carry.
    """

    x: Float32[Array, "b *shape"]
    solver: State
    carry: Carry


def initial_state(solver: Solver, x: Float[Array, "b *shape"], carry: Carry = ()) -> LoopState:
    """Returns the state before the first step, from the noise to start from."""
    x = float32(x)
    return LoopState(x, solver.init(x), carry)


def run_steps(
    denoiser: Denoiser,
    solver: Solver[CoefficientsT],
    state: LoopState,
    coefficients: CoefficientsT,
    noise: Callable[[Array], Array],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
) -> LoopState:
    """Runs steps `start` to `stop` - 1 of a sampler; call it under `jax.jit`.

    The bounds may be traced. Then one program can run all steps at once, or a few at a time to show
    progress or to save intermediate states.

    Args:
        denoiser: The denoiser, with conditions bound; it is compiled once, whatever the number of
            steps. The carry that it returns is passed to it at the next step.
        solver: Takes one step.
        state: From `initial_state` or an earlier call.
        coefficients: The solver's tables, in sampling order; pass them to the compiled function
            as an argument, so that another eta does not recompile it.
        noise: Returns fresh noise like `x` for a step; the index is traced, and 0 is the first step
            (highest timestep). It draws from a key, or indexes a replayed array.
        start: First step.
        stop: One past the last step.
    """

    def step(index: Array, state: LoopState) -> LoopState:
        at_step = jax.tree.map(lambda table: jnp.asarray(table)[index], coefficients)
        timestep = jnp.broadcast_to(at_step.timestep, state.x.shape[:1])
        prediction, carry = denoiser(state.x, timestep, index, state.carry)
        x, solver_state = solver.step(state.solver, state.x, prediction, at_step, noise(index))
        return LoopState(x, solver_state, carry)

    return jax.lax.fori_loop(start, stop, step, state)
