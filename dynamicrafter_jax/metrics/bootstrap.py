"""Estimates how much a measure would vary with other clips, by bootstrap resampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from dynamicrafter_jax.errors import UserError

# Fewer clips say next to nothing about how much clips vary.
_MIN_CLIPS = 10


class Interval(NamedTuple):
    """A measure with a confidence interval.

    Attributes:
        estimate: The measure on the given clips.
        low: Lower end of the interval.
        high: Upper end.
        bias: By how much resampling raised the measure. For a Fréchet distance, this is about the
            bias that comes from having so few clips.
        level: Confidence level, between 0 and 1.
        resamples: Number of resamples behind the interval.
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

    Each resample draws as many clips from each set as it has, with replacement. Before quantiles
    are taken, the resampled measures are centred on the estimate, since resampling shifts measures
    that are biased for few clips, such as the Fréchet distance. So the interval contains the
    estimate, and applies to measures of the same number of clips.

    Args:
        metric: Takes `sets`; returns a function of how often each clip of each set counts, as
            `fvd.frechet_of_resamples`, `fvd.kernel_of_resamples` and `mean_of_resamples` do.
        *sets: One row per clip.
        resamples: Number of resamples; 100 give quantiles to about a tenth of the interval.
        seed: Seed of the resampling; each resample has a key of its own.
        level: Confidence level, between 0 and 1.

    Raises:
        UserError: A set has fewer than 10 clips, or a setting makes no sense.
    """
    if min(map(len, sets)) < _MIN_CLIPS:
        raise UserError(
            f"{min(map(len, sets))} clips are too few for a confidence interval: "
            f"give {_MIN_CLIPS} or more of each set"
        )
    if not 0 < level < 1 or resamples < 2:
        raise UserError(
            f"no confidence interval can be computed at level {level} from {resamples} resamples: "
            "give a level between 0 and 1, and 2 resamples or more"
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
    """Returns the mean of one number per clip, as a metric for `bootstrap`."""
    return lambda counts: float(np.average(values, weights=counts))


def _counts(draw: np.random.Generator, clips: int) -> np.ndarray:
    return np.bincount(draw.integers(clips, size=clips), minlength=clips)
