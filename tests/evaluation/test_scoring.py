"""Rows of clips become numbers of a set, each by a formula written out."""

import dataclasses

import evaluation_sets
import numpy as np
import pytest

from dynamicrafter_jax.evaluation.measures import DREAMSIM, I3D
from dynamicrafter_jax.evaluation.scoring import FVD, Measured, curve_counts, score
from dynamicrafter_jax.metrics.features import Features

COUNT = 11


def made(name: str, seed: int) -> Measured:
    """A set with one feature of I3D, two frames of DreamSim, and one number a clip."""
    draw = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(COUNT))
    frames = np.stack([np.arange(COUNT) / 10, draw.permutation(COUNT) / 5], axis=1)
    rows = {I3D: draw.standard_normal((COUNT, 1)), DREAMSIM: frames}
    return Measured(
        name,
        names,
        ["cats"] * 4 + ["dogs"] * 6 + [""],
        {kind: Features(values.astype(np.float32), names, {}) for kind, values in rows.items()},
        {"motion": draw.standard_normal(COUNT)},
    )


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Of two sets of single numbers."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2


def test_every_number_of_a_set():
    found, real = made("videos", 1), made("reference", 2)
    scores = score(found, real, evaluation_sets.protocol().measures)
    by_name = {one.metric: one for one in scores.scores}
    x, y = (one.rows[I3D].values[:, 0] for one in (found, real))
    assert by_name[FVD].value == pytest.approx(frechet(x, y), rel=1e-5)
    counts = scores.curve["videos"]
    assert list(counts) == curve_counts(COUNT) == [5, 11]
    assert scores.curve[FVD] == pytest.approx([frechet(x[:n], y[:n]) for n in counts], rel=1e-5)

    moved, real_moved = found.numbers["motion"], real.numbers["motion"]
    one = by_name["motion"]
    assert (one.value, one.against) == pytest.approx((moved.mean(), real_moved.mean()))
    assert scores.curve["motion"] == pytest.approx([moved[:5].mean(), moved.mean()])
    assert one.videos == COUNT and one.low is not None and one.low < one.value

    # Of 0, 1, ..., 10 a tenth is up to 1, and a tenth from 9 on.
    assert scores.framewise is not None
    assert scores.framewise["low"] == pytest.approx([0.1, 0.2], rel=1e-6)
    assert scores.framewise["mean"] == pytest.approx([0.5, 1.0], rel=1e-6)
    assert scores.framewise["high"] == pytest.approx([0.9, 1.8], rel=1e-6)

    wanted = {"cats": slice(0, 4), "dogs": slice(4, 10)}
    assert scores.groups == {
        name: {"videos": len(moved[part]), "motion": pytest.approx(moved[part].mean())}
        for name, part in wanted.items()
    }


@pytest.mark.parametrize(
    ("videos", "counts"),
    [(2, [2]), (4, [4]), (7, [7]), (8, [4, 8]), (100, [6, 12, 25, 50, 100])],
)
def test_a_curve_has_no_point_of_fewer_than_four_videos_but_the_last(videos, counts):
    assert curve_counts(videos) == counts


def test_a_distance_from_few_clips_has_no_interval():
    found, real = made("videos", 1), made("reference", 2)
    rows = {kind: features.select(real.clips[:9]) for kind, features in real.rows.items()}
    few = dataclasses.replace(real, clips=real.clips[:9], rows=rows)
    scores = score(found, few, evaluation_sets.protocol().measures).scores
    low = {one.metric: one.low for one in scores}
    assert low[FVD] is None and low["motion"] is not None
