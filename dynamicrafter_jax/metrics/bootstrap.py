"""How far a measure would vary with other clips: confidence intervals by resampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from dynamicrafter_jax.errors import UserError

# Fewer clips say next to nothing of how much clips differ.
_MIN_CLIPS = 10


class Interval(NamedTuple):
    """A measure, and where it would fall with other clips.

    Attributes:
        estimate: The measure of the clips at hand.
        low: Lower end of the interval.
        high: Upper end.
        bias: By how much resampling raised the measure. For a Fréchet distance, about as much as
            it is too large for the number of clips.
        level: Part of other draws of as many clips whose measure is meant to fall between.
        resamples: How many the interval was made of.
    """

    estimate: float
    low: float
    high: float
    bias: float
    level: float
    resamples: int


def bootstrap(
    metric: Callable[..., Callable[..., float]],
    *sets: Shaped[np.ndarray, "_ ..."],
    resamples: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns a measure of sets of clips with a confidence interval (Efron 1979).

    Each resample draws as many clips of each set, with repetition. Their measures are centred on
    that of the clips at hand before their quantiles are taken, since resampling shifts measures
    that are biased for few clips, as the Fréchet distance is. So the interval holds the estimate,
    and is one for measures of as many clips.

    Args:
        metric: Takes `sets`; returns a function of how often each clip of each set counts, as
            `fvd.frechet_of_resamples`, `fvd.kernel_of_resamples` and `mean_of_resamples` do.
        *sets: One row a clip.
        resamples: How many; 100 give quantiles to about a tenth of the interval.
        seed: Of the draws, each of which has a key of its own.
        level: Of the interval, between 0 and 1.

    Raises:
        UserError: If a set has fewer than 10 clips, or a setting makes no sense.
    """
    if min(map(len, sets)) < _MIN_CLIPS:
        raise UserError(
            f"{min(map(len, sets))} clips are too few for a confidence interval: "
            f"give {_MIN_CLIPS} or more of each set"
        )
    if not 0 < level < 1 or resamples < 2:
        raise UserError(
            f"a confidence level of {level} by {resamples} resamples can't be had: give a level "
            "between 0 and 1, and 2 resamples or more"
        )
    measure = metric(*sets)
    estimate = measure(*(np.ones(len(rows), np.int64) for rows in sets))
    found = np.zeros(resamples)
    for i in range(resamples):
        draw = np.random.default_rng((seed, i))
        found[i] = measure(*(_counts(draw, len(rows)) for rows in sets))
    bias = float(found.mean() - estimate)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (float(end) for end in np.quantile(found - bias, tails))
    return Interval(estimate, low, high, bias, level, resamples)


def mean_of_resamples(values: Shaped[np.ndarray, " n"]) -> Callable[[Any], float]:
    """Returns the mean of a number a clip, as `bootstrap` takes it."""
    return lambda counts: float(np.average(values, weights=counts))


def _counts(draw: np.random.Generator, clips: int) -> np.ndarray:
    return np.bincount(draw.integers(clips, size=clips), minlength=clips)
