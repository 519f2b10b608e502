"""One optimizer step, as a pure function of state, batch and key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Bool, Float32, Int, Key, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.training import freezing
from dynamicrafter_jax.training.inputs import QUARTERS, Batch, ClipLosses
from dynamicrafter_jax.training.objectives import Objective
from dynamicrafter_jax.training.state import TrainState
from dynamicrafter_jax.training.throughput import product_flops

TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, "Metrics"]]


class Losses(NamedTuple):
    """Sums over clips, which can be added over the parts of a batch.

    Attributes:
        loss: Weighted sum of losses.
        weight: Sum of weights.
        quarter_loss: The same sum of losses by quarter of the timesteps, least noisy first.
        quarter_weight: The same sum of weights by quarter.
    """

    loss: Float32[Array, ""]
    weight: Float32[Array, ""]
    quarter_loss: Float32[Array, "quarters"]
    quarter_weight: Float32[Array, "quarters"]

    @property
    def mean(self) -> Float32[Array, ""]:
        """The mean loss of clips; 0 if there are none."""
        return self.loss / jnp.maximum(self.weight, 1.0)


class Metrics(NamedTuple):
    """The metrics of a step.

    Attributes:
        losses: Losses of the batch, before the step.
        grad_norm: Global norm of the gradient, before clipping.
    """

    losses: Losses
    grad_norm: Float32[Array, ""]

    @property
    def finite(self) -> Bool[Array, ""]:
        """Whether loss and gradient are finite."""
        return jnp.isfinite(self.losses.loss) & jnp.isfinite(self.grad_norm)


def weighted_losses(clips: ClipLosses, weight: Float32[Array, " b"]) -> Losses:
    """Sums the losses of clips."""
    quarter = jax.nn.one_hot(clips.quarter, QUARTERS)
    # A clip that could not be read must not count, even if its loss is not finite.
    loss = jnp.where(weight > 0, clips.loss * weight, 0.0)
    return Losses(loss.sum(), weight.sum(), loss @ quarter, weight @ quarter)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int,
    ema_decay: float,
    where: PyTree[Sharding] | None = None,
) -> TrainStep:
    """Returns the step of a run.

    Its loss is the mean over the clips of the whole batch that could be read, so neither
    accumulation nor a broken clip changes the weight of another clip relative to the rest. The
    gradient is taken with respect to the trained parameters only.

    Args:
        objective: See `objectives.make_objective`.
        optimizer: See `optimizer.make_optimizer`.
        accumulation: Parts into which a batch is divided.
        ema_decay: See `update_ema`.
        where: Shardings of the trained parameters. Gradients are sharded likewise as soon as they
            are computed, so that their sum over parts takes no more memory on a device than the
            parameters; None lets XLA choose.
    """

    def summed_loss(
        params: PyTree, frozen: PyTree, batch: Batch, rng: Array
    ) -> tuple[Array, Losses]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch.sample_index)
        everything = freezing.join(params, frozen)
        losses = weighted_losses(objective(everything, batch, keys, dropout=True), batch.weight)
        return losses.loss, losses

    def summed_gradient(state: TrainState, batch: Batch, rng: Array) -> tuple[Losses, PyTree]:
        gradient, losses = jax.grad(summed_loss, has_aux=True)(
            state.params, state.frozen, batch, rng
        )
        if where is not None:
            gradient = jax.lax.with_sharding_constraint(gradient, where)
        return losses, gradient

    def train_step(
        state: TrainState, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        if accumulation == 1:
            losses, gradient = summed_gradient(state, batch, rng)
        else:
            parts = jax.tree.map(lambda rows: _parts(rows, accumulation), batch)
            first = jax.eval_shape(summed_gradient, state, _first(parts), rng)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

            def add(sums: Any, part: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, summed_gradient(state, part, rng)), None

            (losses, gradient), _ = jax.lax.scan(add, zeros, parts)
        weight = jnp.maximum(losses.weight, 1.0)
        gradient = jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)
        with jax.numpy_dtype_promotion("standard"):  # the library promotes its counters
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        step, ema = state.step + 1, state.ema
        if ema is not None:
            ema = update_ema(ema, params, ema_decay, step)
        new = TrainState(step, params, state.frozen, opt_state, ema)
        return new, Metrics(losses, optax.tree.norm(gradient))

    return train_step


def jit_step(step: TrainStep, state: TrainState, mesh: Mesh) -> Any:
    """Returns the step under `jax.jit`; the state is donated, and keeps its shardings."""
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))


def compile_step(
    step: TrainStep, state: TrainState, batch: Batch, rng: Key[Array, ""], mesh: Mesh
) -> tuple[TrainStep, int]:
    """Compiles a step for arrays like these, which may be abstract; the state is donated.

    Returns:
        The executable, and the floating-point operations of its products, over all devices.
    """
    traced = jit_step(step, state, mesh).trace(state, batch, rng)
    return traced.lower().compile(), product_flops(traced.jaxpr)


def update_ema(ema: PyTree, params: PyTree, decay: float, updates: Int[Array, ""]) -> PyTree:
    """Returns the average after its n-th update, d_n * ema + (1 - d_n) * params.

    d_n is `decay`, or (1 + n) / (10 + n) while that is smaller: otherwise the average of a short
    run would hardly differ from the parameters it started from. TensorFlow's
    `ExponentialMovingAverage` with `num_updates` and the release's `LitEma` do the same.

    Args:
        ema: The average so far; before the first update, the parameters that a run starts from.
        params: The parameters.
        decay: The highest decay, from 0 to 1.
        updates: n, from 1: optimizer steps done.
    """
    weight = jnp.maximum(1 - decay, 9 / (10 + updates.astype(jnp.float32)))  # 1 - d_n

    def update(old: Array, new: Array) -> Array:
        return old + weight.astype(old.dtype) * (new - old)

    return jax.tree.map(update, ema, params)


def _parts(rows: Array, parts: int) -> Array:
    """Splits the leading axis into `parts` by taking turns, so that each device keeps its rows."""
    b, *shape = rows.shape
    return jnp.moveaxis(rows.reshape(b // parts, parts, *shape), 1, 0)


def _first(parts: PyTree) -> PyTree:
    return jax.tree.map(lambda rows: rows[0], parts)
