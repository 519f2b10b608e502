"""What a sampler leaves out at some of its steps, and takes from earlier ones instead.

Which steps these are is data: tables with one row per step, which are arguments of the compiled
loop, so that other intervals do not recompile it. A cache that is not used is None, and the program
then has nothing of it.
"""

from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float32

from dynamicrafter_jax.errors import UserError

BoolTable = Bool[Array | np.ndarray, "*steps"]
ShareTable = Float32[Array | np.ndarray, "*steps"]


class GuidanceTables(NamedTuple):
    """Which guided passes each step runs.

    Attributes:
        all_passes: Whether all of them are run, or the conditional one alone.
        kept: Where it is run alone, how much of the differences between the passes is kept from
            the last step that ran all: 1 (arXiv 2410.19355), or 0 for no guidance at this step
            (arXiv 2404.07724).
    """

    all_passes: BoolTable
    kept: ShareTable


class CacheTables(NamedTuple):
    """What each step computes anew.

    Attributes:
        deep: Whether the deep part of the denoiser is run, or its last result reused (arXiv
            2312.00858); None if it is run at every step.
        guidance: Which guided passes are run; None if all are, at every step.
    """

    deep: BoolTable | None = None
    guidance: GuidanceTables | None = None


def cache_tables(
    steps: int,
    *,
    num_passes: int,
    max_depth: int,
    deep_cache_interval: int = 1,
    deep_cache_depth: int = 1,
    guidance_start: float = 0.0,
    guidance_stop: float = 1.0,
    guidance_reuse_interval: int = 1,
) -> CacheTables:
    """Returns the tables of a run; by default, nothing is cached.

    No pass takes a deep feature that is `deep_cache_interval` or more steps old. A pass that was
    not run for longer than that brings the deep part with it when it is run again.

    Args:
        steps: Steps of the run.
        num_passes: Guided passes of a whole step; 1 without guidance, which then has no steps to
            leave out.
        max_depth: The largest `deep_cache_depth` that the denoiser has.
        deep_cache_interval: The deep part is run at one of so many steps.
        deep_cache_depth: How many outermost blocks are run at the others; checked only.
        guidance_start: Share of the run where guidance begins: step i of n, counted from 0, is
            guided if i / n is from this up to, but without, `guidance_stop`.
        guidance_stop: Share of the run where it ends.
        guidance_reuse_interval: All passes are run at one of so many guided steps, beginning with
            the first, and the conditional pass alone at the others.

    Raises:
        UserError: A value is out of range.
    """
    intervals = {
        "deep_cache_interval": deep_cache_interval,
        "guidance_reuse_interval": guidance_reuse_interval,
    }
    for name, interval in intervals.items():
        if not 1 <= interval <= steps:
            raise UserError(
                f"sampling.{name} is {interval}: choose from 1 (every step) to {steps}, the "
                "number of steps"
            )
    if not 1 <= deep_cache_depth <= max_depth:
        raise UserError(
            f"sampling.deep_cache_depth is {deep_cache_depth}: choose from 1 to {max_depth}, the "
            "number of the U-Net's input blocks"
        )
    if not 0 <= guidance_start < guidance_stop <= 1:
        raise UserError(
            f"sampling.guidance_start is {guidance_start} and guidance_stop {guidance_stop}: "
            "give two shares of the run in ascending order, 0 and 1 for all of it"
        )
    position = np.arange(steps) / steps
    guided = (guidance_start <= position) & (position < guidance_stop)
    if not guided.any():
        raise UserError(
            f"none of the {steps} steps is from sampling.guidance_start={guidance_start} to "
            f"guidance_stop={guidance_stop}: widen this, or set guidance_scale to 1 for none"
        )
    if num_passes == 1:
        guided, guidance_reuse_interval = np.ones(steps, bool), 1
    all_passes = guided & ((np.cumsum(guided) - 1) % guidance_reuse_interval == 0)
    tables = GuidanceTables(all_passes, guided.astype(np.float32))
    return CacheTables(
        deep=None if deep_cache_interval == 1 else _deep_steps(all_passes, deep_cache_interval),
        guidance=None if all_passes.all() else tables,
    )


def _deep_steps(all_passes: Bool[np.ndarray, "steps"], interval: int) -> Bool[np.ndarray, "steps"]:
    """Returns where the deep part is run, so that no pass takes what is older than `interval`."""
    deep = np.zeros(len(all_passes), bool)
    conditional = others = -interval  # the last steps at which these passes ran the deep part
    for index, every in enumerate(all_passes):
        deep[index] = index - (min(conditional, others) if every else conditional) >= interval
        if deep[index]:
            conditional, others = index, index if every else others
    return deep
