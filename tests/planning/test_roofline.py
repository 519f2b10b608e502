"""The walls of made-up programs, worked out by hand."""

import dataclasses

import pytest

from dynamicrafter_jax.planning.chips import CHIPS
from dynamicrafter_jax.planning.collectives import Collective
from dynamicrafter_jax.planning.hlo import ProgramCounts
from dynamicrafter_jax.planning.roofline import roofline

V5E = CHIPS["v5e"]
NOTHING = ProgramCounts(0, 0, (), (), ())


def collective(kind: str, group: tuple[int, ...], size: int) -> ProgramCounts:
    found = Collective(kind, ((1,),), ((1,),), "f32", group, 1, size, "")
    return dataclasses.replace(NOTHING, collectives=(found,))


def test_the_highest_wall_is_the_time():
    found = roofline(dataclasses.replace(NOTHING, flops=197 * 10**12, bytes=819 * 10**8), V5E, 16)
    assert (found.compute, found.memory) == pytest.approx((1.0, 0.1))
    assert (found.wall, found.seconds) == ("compute", found.compute)
    assert roofline(dataclasses.replace(NOTHING, bytes=1), V5E, 16).wall == "memory"


@pytest.mark.parametrize(
    ("kind", "group", "links"),
    [
        ("all-gather", (0, 1), 1),  # one neighbour
        ("all-gather", (0, 1, 2, 3), 2),  # a square: two neighbours each
        ("reduce-scatter", tuple(range(16)), 3),  # 4 x 4: 48 links for 16 devices
        ("collective-permute", (0, 1, 2, 3), 1),
        ("all-to-all", (0, 1), 1),
        # In a square, of 3 parts 2 go one link and 1 goes two: 4 links for what 3 send.
        ("all-to-all", (0, 1, 2, 3), 2 * 3 / 4),
    ],
)
def test_links_that_a_group_has(kind: str, group: tuple[int, ...], links: float):
    found = roofline(collective(kind, group, 3 * 10**9), V5E, 16)
    assert found.network == pytest.approx(3e9 / (links * V5E.link_bandwidth))
    assert found.exchange == (found.network if kind == "all-to-all" else 0)


def test_between_slices_all_goes_over_the_slower_network():
    within = roofline(collective("all-reduce", (0, 1), 10**9), V5E, 16)
    between = roofline(collective("all-reduce", (0, 16), 10**9), V5E, 16)
    assert between.network == pytest.approx(1e9 / V5E.dcn_bandwidth)
    assert within.network < between.network
