"""AdamW or Muon with a clipped gradient and a schedule of the learning rate."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, muon

from dynamicrafter_jax.training.settings import TrainSettings

# Muon's steps are made as large as AdamW's commonly are, so that the two share a learning rate
# (arXiv 2502.16982, section 2.2).
_STEP_SIZE = 0.2

# Linear maps with several axes of outputs; all others have several of inputs, or one of each.
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
    """Returns the rate as a function of optimizer steps done.

    It rises in a straight line, so that step `warmup_steps` is the first at the full rate, then
    stays, or falls to 0 at `steps` along half a cosine (arXiv 1608.03983, Eq. 5).
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

    `adamw` (arXiv 1711.05101) has two. `muon` (arXiv 2502.16982) has one for a kernel, whose steps
    it makes orthogonal, and takes AdamW without weight decay for all else.
    """
    rate = learning_rate(settings)
    if settings.optimizer == "muon":
        chosen = muon(
            rate,
            beta=settings.beta1,
            weight_decay=settings.weight_decay,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            consistent_rms=_STEP_SIZE,
            muon_weight_dimension_numbers=_matrices,
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


def _matrices(params: PyTree) -> PyTree[MuonDimensionNumbers | None]:
    """Returns which axes of each kernel are its inputs and its outputs; None for all else."""

    def axes(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or leaf.ndim < 2:
            return None
        inputs = 1 if path[-2].key in _MANY_OUTPUTS else leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
