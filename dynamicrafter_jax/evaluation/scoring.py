"""Turns the rows of clips into scores of a set: distances and means, with confidence intervals."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from dynamicrafter_jax.evaluation import protocol as protocols
from dynamicrafter_jax.evaluation.measures import DREAMSIM, I3D, Measure, Numbers
from dynamicrafter_jax.evaluation.measuring import Item
from dynamicrafter_jax.metrics.bootstrap import Interval, bootstrap, mean_of_resamples
from dynamicrafter_jax.metrics.features import Features
from dynamicrafter_jax.metrics.fvd import frechet_of_resamples, kernel_of_resamples

FVD, KVD = "FVD", "KVD"

_DISTANCES = {FVD: frechet_of_resamples, KVD: kernel_of_resamples}
# The least number of clips for a confidence interval, and for a point of a curve.
_FEW, _LEAST = 10, 4


@dataclasses.dataclass(frozen=True)
class Measured:
    """A set of clips with their measurements.

    Attributes:
        name: Name of the set.
        clips: Names of the clips, in the order of the list.
        groups: Group of each clip, or "".
        rows: Rows by measure; one for each clip, in the same order.
        numbers: The per-clip numbers, by name.
    """

    name: str
    clips: Sequence[str]
    groups: Sequence[str]
    rows: Mapping[str, Features]
    numbers: Numbers


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric's value for a set.

    Attributes:
        metric: Name of the metric.
        value: Its value.
        low: Lower end of the confidence interval; None for too few clips.
        high: Upper end; None for too few clips.
        bias: By how much resampling raised the value; None for too few clips.
        videos: Number of clips that it was computed from.
        against: Mean over the reference clips, for a per-clip number; otherwise None.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    bias: float | None
    videos: int
    against: float | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """All scores of a set.

    Attributes:
        set: Name of the set.
        scores: The value of each metric.
        curve: Each metric over increasing numbers of the first videos, which are "videos".
        framewise: PIC by frame: "mean", and "low" and "high", which enclose 80 % of clips.
        groups: By group: the number of clips, and the mean of each per-clip number.
        notes: What a reader must know about the scores.
        seconds: Time spent on distances and means, and on intervals.
    """

    set: str
    scores: Sequence[Score]
    curve: Mapping[str, Sequence[float | int]]
    framewise: Mapping[str, Sequence[float]] | None
    groups: Mapping[str, Mapping[str, float]]
    notes: Sequence[str]
    seconds: Mapping[str, float]


def score(found: Measured, reference: Measured, settings: protocols.Measures) -> Scores:
    """Compares a set with the reference, and averages the per-clip numbers."""
    options: Any = {
        "resamples": settings.resamples,
        "level": settings.level,
        "seed": settings.seed,
    }
    clock = {"numbers": 0.0, "intervals": 0.0}
    scores: list[Score] = []
    notes: list[str] = []
    counts = curve_counts(min(len(found.clips), len(reference.clips)))
    curve: dict[str, Sequence[float | int]] = {"videos": counts}

    def add(name: str, of_counts: Callable[..., float], *sets: np.ndarray, **more: Any) -> None:
        started = time.perf_counter()
        value = of_counts(*(np.ones(len(rows), np.int64) for rows in sets))
        clock["numbers"] += time.perf_counter() - started
        started = time.perf_counter()
        interval = _interval(of_counts, sets, options)
        clock["intervals"] += time.perf_counter() - started
        low, high, bias = (None,) * 3 if interval is None else interval[1:4]
        scores.append(Score(name, float(value), low, high, bias, len(sets[0]), **more))
        curve[name] = [of_counts(*(_first(n, rows) for rows in sets)) for n in counts]

    if I3D in found.rows:
        x, y = found.rows[I3D].values, reference.rows[I3D].values
        for name, distance in _DISTANCES.items():
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the note says it
                of_counts = distance(x, y)
            clock["numbers"] += time.perf_counter() - started
            add(name, of_counts, x, y)
        if min(len(x), len(y)) <= x.shape[1]:
            notes.append(
                f"{min(len(x), len(y))} videos for {x.shape[1]} features: their covariance is "
                "singular and FVD far too large; don't compare it with FVD of another number"
            )
    for name, values in found.numbers.items():
        real = reference.numbers.get(name)
        against = None if real is None else float(real.mean())
        add(name, mean_of_resamples(values), values, against=against)
    if len(found.clips) < _FEW:
        notes.append(f"{len(found.clips)} videos are too few for confidence intervals")
    return Scores(found.name, scores, curve, _framewise(found), _by_group(found), notes, clock)


def curve_counts(videos: int) -> list[int]:
    """Returns the numbers of videos at which a curve has points: ..., a quarter, half, all."""
    counts = [videos]
    while counts[-1] // 2 >= _LEAST:
        counts.append(counts[-1] // 2)
    return counts[::-1]


def measured(
    name: str,
    items: Sequence[Item],
    groups: Mapping[str, str],
    rows: Mapping[str, Features],
    measures: Sequence[Measure],
) -> Measured:
    """Collects the measurements of the clips of a set."""
    clips, prompts = [item.name for item in items], [item.prompt for item in items]
    numbers: dict[str, Float64[np.ndarray, " n"]] = {}
    for measure in measures:
        numbers |= measure.numbers(rows[measure.name].values, prompts)
    return Measured(name, clips, [groups.get(clip, "") for clip in clips], rows, numbers)


def _interval(
    of_counts: Callable[..., float], sets: Sequence[np.ndarray], options: Any
) -> Interval | None:
    if min(map(len, sets)) < _FEW:
        return None
    return bootstrap(lambda *_: of_counts, *sets, **options)


def _first(count: int, rows: np.ndarray) -> np.ndarray:
    """Returns how often each clip counts if only the first `count` do."""
    return (np.arange(len(rows)) < count).astype(np.int64)


def _framewise(found: Measured) -> dict[str, list[float]] | None:
    if DREAMSIM not in found.rows:
        return None
    values: Float[np.ndarray, "n t"] = found.rows[DREAMSIM].values.astype(np.float64)
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    return {"mean": values.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}


def _by_group(found: Measured) -> dict[str, dict[str, float]]:
    names = sorted(set(found.groups) - {""})
    if len(names) < 2:
        return {}
    groups = np.asarray(found.groups)
    return {
        name: {"videos": float((groups == name).sum())}
        | {metric: float(row[groups == name].mean()) for metric, row in found.numbers.items()}
        for name in names
    }
