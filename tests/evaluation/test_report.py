"""The table of numbers, as a person reads it."""

import pytest

from dynamicrafter_jax.evaluation.report import scores_table
from dynamicrafter_jax.evaluation.scoring import Score, Scores


def scores(name: str, low: float | None) -> Scores:
    high = None if low is None else 0.6
    numbers = (Score("motion_degree", 0.5, low, high, None, 12, 0.4),)
    return Scores(name, numbers, {}, None, {}, [], {})


@pytest.mark.parametrize("low", [None, 0.4])
def test_columns_have_names_of_their_own_and_intervals_are_explained_where_there_are_some(low):
    lines = scores_table([scores("videos", low), scores("videos_through_mp4", low)], 0.95)
    names = [name.strip() for name in lines[0].strip("|").split("|")]
    assert len(set(names)) == len(names) == 6 and "number of videos" in names
    assert lines[1].count("---") == 6
    value = "0.5000" if low is None else "0.5000 (0.4000 to 0.6000)"
    assert lines[2] == f"| motion_degree |  | {value} | {value} | 12 | 0.4000 |"
    assert any("confidence intervals" in line for line in lines) == (low is not None)
