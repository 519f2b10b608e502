"""The order, the times and the rate of frames, from what packets say."""

from fractions import Fraction

import pytest

from dynamicrafter_jax.data.videos.packets import Packet, PacketIndex, must_count
from dynamicrafter_jax.media.rates import frame_rate

MILLISECOND = Fraction(1, 1000)


def video(
    times: list[int | None], keys: tuple[int, ...] = (0,), hidden: tuple[int, ...] = ()
) -> list[Packet]:
    """Packets that say these times, with keys and hidden ones at these places."""
    return [
        Packet(time, time, is_key=i in keys, frames=int(i not in hidden))
        for i, time in enumerate(times)
    ]


IN_ORDER = [0, 40, 80, 120]
B_FRAMES = [0, 120, 40, 80, 240, 160, 200]

COUNTED = [  # packets, whether the codec can and is said to reorder, whether frames are counted
    (video([*IN_ORDER]), False, False, False),
    (video([*IN_ORDER]), True, False, False),
    (video([*IN_ORDER]), True, True, True),  # times of decoding
    (video([*IN_ORDER], keys=(0, 1, 2, 3)), True, True, False),  # nothing to reorder
    (video([*B_FRAMES]), True, True, False),
    (video([*B_FRAMES]), True, False, False),
    (video([*B_FRAMES]), False, False, True),  # impossible
    (video([0, 40, 40, 80]), False, False, True),
    (video([0, 40, 40, 80], hidden=(1,)), False, False, False),
    (video([0, None, 40, 80]), False, False, True),
    (video([0, None, 40, 80], hidden=(1,)), False, False, False),
    (video([0, 40, 80, 10, 50, 90], keys=(0, 3)), True, True, True),  # the clock was set anew
    (video([-80, -40, 0, 40]), False, False, False),
]


@pytest.mark.parametrize("packets, can_reorder, reorders, counted", COUNTED)
def test_frames_are_counted_where_times_are_wrong(
    packets: list[Packet], can_reorder: bool, reorders: bool, counted: bool
):
    assert must_count(packets, can_reorder=can_reorder, reorders=reorders) is counted


RATES = [  # packets, whether frames are counted, whether times may jump, frames a second
    (video([*IN_ORDER]), False, False, 25.0),
    (video([3_600_000 + time for time in IN_ORDER]), False, True, 25.0),
    (video([*B_FRAMES]), False, False, 25.0),
    (video([0, 10, 500]), False, False, 4.0),
    (video([0, 10, 500, 100_000]), False, False, 0.03),  # a page that stays, of a talk
    (video([0, 40, 40, 80], hidden=(2,)), False, False, 25.0),
    (video([0, 40, 40, 80]), True, False, 37.5),
    (video([0, 40, 80, 3_600_000, 3_600_040], keys=(0, 3)), False, True, 25.0),
    (video([5000, 5040, 5080, 0, 40, 80], keys=(0, 3)), True, False, 25.0),
    (video([7]), False, False, None),
    (video([7, 7]), True, False, None),
    (video([None, None, None]), True, False, None),
]


@pytest.mark.parametrize("packets, counted, may_jump, rate", RATES)
def test_rates_are_those_of_the_times(
    packets: list[Packet], counted: bool, may_jump: bool, rate: float | None
):
    index = PacketIndex(packets, counted=counted)
    found = index.rate(MILLISECOND, None, may_jump=may_jump)
    assert found is None if rate is None else float(found or 0) == pytest.approx(rate, rel=1e-3)
    # What a file says is taken where its times don't tell.
    told = index.rate(MILLISECOND, Fraction(12), may_jump=may_jump)
    assert float(told or 0) == pytest.approx(rate or 12, rel=1e-3)


def test_rates_that_agree_but_for_rounding_are_as_told():
    """A file that counts milliseconds can't say 1 / 30 s."""
    index = PacketIndex(video([round(1000 * i / 30) for i in range(18)]), counted=False)
    assert index.rate(MILLISECOND, None, may_jump=False) == Fraction(17, 567) * 1000
    assert index.rate(MILLISECOND, Fraction(30), may_jump=False) == 30
    assert index.rate(MILLISECOND, Fraction(29), may_jump=False) == Fraction(17, 567) * 1000


@pytest.mark.parametrize(("ticks_a_second", "frames", "off"), [(90_000, 100, 2), (100, 4, 1)])
def test_rates_that_are_further_off_than_rounding_are_not_as_told(
    ticks_a_second: int, frames: int, off: int
):
    """Neither by two ticks of a fine clock, nor by one of a coarse clock."""
    tick, told = Fraction(1, ticks_a_second), Fraction(25)
    ticks = (frames - 1) * ticks_a_second // 25
    assert frame_rate(frames, ticks, tick, told) == told
    for other in (ticks - off, ticks + off):
        assert frame_rate(frames, other, tick, told) == (frames - 1) / (other * tick)


def test_what_decoders_wait_for_at_first_is_no_time_between_frames():
    packets = [Packet(None, dts, is_key=not dts) for dts in (0, 120, 160, 200, 240)]
    assert PacketIndex(packets, counted=True).rate(MILLISECOND, None, may_jump=False) == 25


def test_runs_start_at_keys_and_end_at_what_is_wanted():
    times: list[int | None] = [0, 80, 40, 120, 240, 160, 200]
    index = PacketIndex(video(times, keys=(0, 3), hidden=(4,)), counted=False)
    assert index.num_frames == 6
    (run,) = index.runs([3, 5])  # in order: 0, 40, 80, 120, 160, 200
    assert (run.first, run.last, run.wanted) == (3, 6, {120: 0, 200: 1})
    first, second = index.runs([0, 3])
    assert (first.first, first.last, second.first, second.last) == (0, 0, 3, 3)
    counted = PacketIndex(video(times, keys=(1,)), counted=True)
    assert counted.num_frames == 6  # the one before the first key can't be decoded
    (run,) = counted.runs([2])
    assert (run.first, run.last, run.wanted) == (1, 6, {2: 0})
    assert counted.runs([]) == []


def test_frames_before_the_first_key_are_not_shown():
    index = PacketIndex(video([10, 100, 60, 80, 140], keys=(1,)), counted=False)
    assert index.num_frames == 2
    assert index.rate(MILLISECOND, None, may_jump=False) == 25
