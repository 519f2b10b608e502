"""AdamW or Muon with a clipped gradient and a schedule of the learning rate."""

import optax

from dynamicrafter_jax.training.muon import muon
from dynamicrafter_jax.training.settings import TrainSettings


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
