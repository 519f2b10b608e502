"""AdamW or Muon with gradient clipping and a learning rate schedule."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from dynamicrafter_jax.training.settings import TrainSettings

# Muon's steps are scaled to the usual size of AdamW's, so that both can use the same learning rate
# (arXiv 2502.16982, section 2.2).
_STEP_SIZE = 0.2

# Linear maps with several output axes; all others have several input axes, or one of each.
_MANY_OUTPUTS = frozenset(
    (
        "qkv",
        "key_value",
        "query",
        "key",
        "value",
        "text_key",
        "text_value",
        "image_key",
        "image_value",
        "in",
    )
)


def learning_rate(settings: TrainSettings) -> optax.Schedule:
    """Returns the learning rate as a function of optimizer steps done.

    It rises linearly, so that step `warmup_steps` is the first at the full rate, then stays
    constant, or falls to 0 at `steps` along half a cosine (arXiv 1608.03983, Eq. 5).
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, settings.steps - warmup))
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Returns the optimizer; its state holds float32 moments of each trained parameter.

    `adamw` (arXiv 1711.05101) has two moments. `muon` (arXiv 2502.16982) has one for each kernel,
    whose updates it orthogonalizes, and uses AdamW without weight decay for all other parameters.
    """
    rate = learning_rate(settings)
    if settings.optimizer == "muon":
        chosen = muon(
            rate,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay,
        )
    else:
        chosen = optax.adamw(
            rate,
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), chosen)


def muon(
    rate: optax.Schedule, *, beta1: float, beta2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Returns Muon (arXiv 2502.16982).

    Kernels take steps that are orthogonal matrices; all other parameters take AdamW's steps.
    `optax.contrib.muon` processes one kernel after another. A small model has hundreds, whose
    products are far too small for an accelerator, so here kernels of the same shape are
    orthogonalized together.

    Args:
        rate: Learning rate.
        beta1: Decay of the momentum, in Nesterov's form.
        beta2: AdamW's second decay, for parameters that are not kernels; their weights don't decay.
        weight_decay: Weight decay of kernels, multiplied by the rate.
    """
    kernels = optax.chain(
        optax.trace(beta1, nesterov=True),
        optax.stateless(orthogonalize),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    others = optax.adamw(rate, b1=beta1, b2=beta2, weight_decay=0.0, nesterov=True)
    return optax.partition({"kernel": kernels, "other": others}, _kinds)


def orthogonalize(updates: PyTree, params: PyTree | None = None) -> PyTree[Array]:
    """Returns approximately the nearest orthogonal matrix to each kernel, times its step size.

    Args:
        updates: Kernels, at the same paths as in the parameters.
        params: Not used.
    """
    del params
    paths, structure = jax.tree_util.tree_flatten_with_path(updates)
    matrices = [_matrix(path, leaf) for path, leaf in paths]
    # Tall matrices are transposed, which halves the number of shapes.
    tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    lying = [matrix.T if stands else matrix for matrix, stands in zip(matrices, tall, strict=True)]
    alike: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for number, matrix in enumerate(lying):
        alike[matrix.shape].append(number)
    stacks = {
        shape: jnp.stack([lying[number] for number in group]) for shape, group in alike.items()
    }
    # Without momentum, which `trace` applies.
    orthogonal = scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=dict.fromkeys(stacks, MuonDimensionNumbers(1, 2)),
    )
    made: Any = orthogonal.update(stacks, orthogonal.init(stacks))[0]
    result: list[Array] = [leaf for _, leaf in paths]
    for (short, long), group in alike.items():
        for matrix, number in zip(made[short, long], group, strict=True):
            matrix = _STEP_SIZE * math.sqrt(long) * matrix
            result[number] = (matrix.T if tall[number] else matrix).reshape(result[number].shape)
    return jax.tree.unflatten(structure, result)


def _kinds(params: PyTree) -> PyTree[str]:
    def kind(path: tuple[Any, ...], leaf: Any) -> str:
        return "kernel" if path[-1].key == "kernel" and leaf.ndim > 1 else "other"

    return jax.tree_util.tree_map_with_path(kind, params)


def _matrix(path: tuple[Any, ...], kernel: Array) -> Float[Array, "inputs outputs"]:
    """Returns a kernel as the matrix of its linear map."""
    axes = 1 if path[-2].key in _MANY_OUTPUTS else kernel.ndim - 1
    return kernel.reshape(math.prod(kernel.shape[:axes]), -1)
