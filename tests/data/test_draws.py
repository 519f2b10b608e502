"""What is drawn: by which rule, with which probability, and always the same for a number."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from dynamicrafter_jax.data.draws import ClipSettings, Draw, check_length, draw_clip, video_of
from dynamicrafter_jax.errors import UserError

SETTINGS = ClipSettings(
    height=64,
    width=96,
    num_frames=16,
    min_stride=1,
    max_stride=6,
    fs="fps",
    condition_dropout=0.05,
    random_frame=True,
    context_length=77,
)
# Chance alone brings a p-value below this once in ten thousand tests; and seeds are fixed.
RARE = 1e-4


def draws(count: int, num_source_frames: int = 300, seed: int = 5) -> list[Draw]:
    return [draw_clip(seed, i, num_source_frames, SETTINGS) for i in range(count)]


def uniform(values: list[int], low: int, high: int) -> bool:
    """Whether all of low .. high are there, and equally often as far as one can tell."""
    counts = np.bincount(np.array(values) - low, minlength=high - low + 1)
    return len(counts) == high - low + 1 and stats.chisquare(counts).pvalue > RARE


def test_each_draw_is_uniform_over_its_range():
    found = draws(6000)
    assert uniform([draw.stride for draw in found], 1, 6)
    assert uniform([draw.frame for draw in found], 0, 15)
    for stride in range(1, 7):
        room = 300 - (15 * stride + 1)
        starts = [draw.start for draw in found if draw.stride == stride]
        assert min(starts) >= 0 and max(starts) <= room
        assert stats.kstest(np.array(starts) / room, "uniform").pvalue > RARE
    # Both ends are reached where there is little room.
    starts = [draw.start for draw in draws(600, 18) if draw.stride == 1]
    assert uniform(starts, 0, 2)


def test_draws_are_independent_of_each_other_and_from_sample_to_sample():
    found = np.array([(d.stride, d.start, d.frame, d.keep_text) for d in draws(4000)], float)
    found[:, 1] /= 300 - (15 * found[:, 0] + 1)
    correlation = np.corrcoef(found, rowvar=False)
    limit = 4 / math.sqrt(len(found))
    assert np.abs(correlation - np.eye(4)).max() < limit
    for column in found.T:
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < limit
        other = np.array([d.frame for d in draws(4000, seed=6)])
        assert abs(np.corrcoef(column, other)[0, 1]) < limit


def test_conditions_are_dropped_as_in_the_release():
    """One number r: no prompt where r < 2p, no image where p <= r < 3p."""
    p, count = 0.05, 20000
    kept = Counter((draw.keep_text, draw.keep_image) for draw in draws(count))
    expected = {(False, True): p, (False, False): p, (True, False): p, (True, True): 1 - 3 * p}
    observed = [kept[case] for case in expected]
    shares = np.array(list(expected.values()))
    assert stats.chisquare(observed, shares * count).pvalue > RARE


@pytest.mark.parametrize("p", [0.0, 0.1, 1 / 3])
def test_the_thresholds_of_r_are_exact(monkeypatch: pytest.MonkeyPatch, p: float):
    class Words:
        def __init__(self, key: np.ndarray) -> None:
            del key

        def random_raw(self, size: int) -> np.ndarray:
            return np.array([0] * (size - 1) + [word], np.uint64)

    monkeypatch.setattr(np.random, "Philox", Words)
    for r in (0.0, p / 2, p, 1.5 * p, 2 * p, 2.5 * p, 3 * p, 0.999):
        for nudge in (-1e-9, 0, 1e-9):
            exact = min(max(r + nudge, 0.0), 1 - 1e-9)
            word = int(exact * 2**53) << 11
            exact = (word >> 11) / 2**53
            draw = draw_clip(0, 0, 300, replace(SETTINGS, condition_dropout=p))
            assert draw.keep_text == (not exact < 2 * p)
            assert draw.keep_image == (not p <= exact < 3 * p)


@pytest.mark.parametrize("num_source_frames, largest", [
    (16, 1), (30, 1), (31, 2), (32, 2), (40, 2), (60, 3), (76, 5), (90, 5), (91, 6), (500, 6),
])  # fmt: skip
def test_strides_fit_into_the_video(num_source_frames: int, largest: int):
    """One that does not is lowered to frames // 16, and not drawn again."""
    found = draws(600, num_source_frames)
    assert max(draw.stride for draw in found) == largest
    for draw, long in zip(found, draws(600), strict=True):
        fits = num_source_frames >= 15 * long.stride + 1
        assert draw.stride == (long.stride if fits else max(1, num_source_frames // 16))
        frames = draw.frames
        assert len(frames) == 16 and frames[1] - frames[0] == draw.stride
        assert frames[0] >= 0 and frames[-1] < num_source_frames


def test_a_sample_keeps_its_other_draws_whatever_its_video():
    for short, long in zip(draws(200, 20), draws(200, 4000), strict=True):
        assert short[2:] == long[2:]


def test_the_first_frame_can_be_the_condition_always():
    first = replace(SETTINGS, random_frame=False)
    for i, draw in enumerate(draws(100)):
        assert draw_clip(5, i, 300, first) == draw._replace(frame=0)


def test_clips_of_one_frame():
    one = replace(SETTINGS, num_frames=1)
    found = [draw_clip(0, i, 4, one) for i in range(400)]
    assert uniform([draw.start for draw in found], 0, 3)
    assert {draw.frame for draw in found} == {0}


ENDS_SHARE = 0.4
SOME = replace(SETTINGS, frames=5, random_frame=False, ends_share=ENDS_SHARE)


def test_of_few_frames_the_others_are_as_likely_as_each_other():
    found = [draw_clip(5, i, 300, SOME) for i in range(8000)]
    for draw in found:
        assert len(draw.places) == 5 and list(draw.places) == sorted(set(draw.places))
        assert draw.places[0] == 0 and draw.frame_read == 0
        assert draw.places[-1] == 15 or not draw.ends
        assert draw.frames == tuple(draw.start + draw.stride * place for place in draw.places)
    for ends in (False, True):
        others = range(1, 15 if ends else 16)
        chosen = [set(draw.places) & set(others) for draw in found if draw.ends == ends]
        picked = len(chosen[0])
        pairs = Counter(pair for one in chosen for pair in itertools.combinations(sorted(one), 2))
        assert uniform([place for one in chosen for place in one], others[0], others[-1])
        # Pairs of one clip are not independent, so their counts spread less than by chance.
        wanted = len(chosen) * math.comb(picked, 2) / math.comb(len(others), 2)
        assert len(pairs) == math.comb(len(others), 2)
        statistic = sum((count - wanted) ** 2 / wanted for count in pairs.values())
        assert stats.chi2.sf(statistic, len(pairs) - 1) > RARE
    count = sum(draw.ends for draw in found)
    assert stats.binomtest(count, len(found), ENDS_SHARE).pvalue > RARE


def test_leaving_frames_out_changes_nothing_else():
    for i, draw in enumerate(draws(200)):
        some = draw_clip(5, i, 300, replace(SETTINGS, frames=3, ends_share=ENDS_SHARE))
        assert some[:5] == draw[:5] and not draw.ends and draw.places == tuple(range(16))
        assert some.places[some.frame_read] == draw.frame == draw.frame_read
        assert {0, 15} <= set(some.places) or not some.ends


def test_short_videos_are_refused():
    check_length("a.mp4", 16, SETTINGS)
    with pytest.raises(UserError, match=r"^a\.mp4 has 9 frames, but 16 are needed$"):
        check_length("a.mp4", 9, SETTINGS)


@pytest.mark.parametrize("num_videos", [1, 2, 3, 7, 64, 65, 1000])
def test_each_epoch_has_each_video_once(num_videos: int):
    epochs = [
        [video_of(3, epoch * num_videos + i, num_videos) for i in range(num_videos)]
        for epoch in range(3)
    ]
    for order in epochs:
        assert sorted(order) == list(range(num_videos))
    if num_videos > 3:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0] != list(range(num_videos))
        assert epochs[0] != [video_of(4, i, num_videos) for i in range(num_videos)]
        # An epoch of one seed is no epoch of another: seeds count up, as epochs do.
        assert epochs[1] != [video_of(4, i, num_videos) for i in range(num_videos)]


@pytest.mark.parametrize("num_videos", [2, 3, 4, 5])
def test_all_orders_are_equally_likely(num_videos: int):
    orders = Counter(
        tuple(video_of(0, epoch * num_videos + i, num_videos) for i in range(num_videos))
        for epoch in range(9 * math.factorial(num_videos))
    )
    observed = [orders[order] for order in itertools.permutations(range(num_videos))]
    assert stats.chisquare(observed).pvalue > RARE


def test_many_videos_are_mixed():
    places = np.arange(4000)
    videos = np.array([video_of(0, int(i), 10_000_000) for i in places])
    assert len(set(videos.tolist())) == 4000
    assert stats.kstest(videos / 1e7, "uniform").pvalue > RARE
    for lag in (1, 2, 64, 1024):
        assert abs(np.corrcoef(videos[lag:], videos[:-lag])[0, 1]) < 0.07


def test_settings_come_from_a_config():
    config = ConfigDict()
    config.sampling = {"height": 320, "width": 512, "num_frames": 16}
    config.data = {"min_stride": 2, "max_stride": 3, "fs": "stride", "frames": 4}
    config.data.update(condition_dropout=0, random_frame=False)
    config.text_encoder = {"context_length": 77}
    config.projector = {"video_length": 16}
    for concat, share in {"frame": 0.0, "nothing": 0.0, "either": 0.25, "ends": 1.0}.items():
        config.train = {"concat": concat, "ends_share": 0.25}
        settings = ClipSettings.from_config(config)
        assert settings == ClipSettings(
            320, 512, 16, 2, 3, "stride", 0.0, False, 77, frames=4, ends_share=share
        )
    config.sampling.update(num_frames=8)
    with pytest.raises(UserError, match=r"data.frames is 4, .*num_frames = 8 .*video_length = 16"):
        ClipSettings.from_config(config)


@pytest.mark.parametrize("fault, message", [
    ({"min_stride": 0}, "data.min_stride is 0 and data.max_stride 6: give whole numbers from 1"),
    ({"min_stride": 7}, "data.min_stride is 7 and data.max_stride 6"),
    ({"condition_dropout": 0.4}, "data.condition_dropout is 0.4: give 0 to 1/3"),
    ({"condition_dropout": math.nan}, "data.condition_dropout is nan"),
    ({"fs": "frames"}, "data.fs is 'frames': choose fps or stride"),
    ({"num_frames": 0}, "sampling.num_frames is 0: give 1 or more"),
    ({"frames": 0}, "data.frames is 0: give 1 to 16"),
    ({"frames": 17}, "data.frames is 17: give 1 to 16"),
    ({"frames": 2, "ends_share": 0.5}, "data.frames is 2: give 3 to 16"),
    ({"frames": 1, "ends_share": 0.5, "random_frame": False}, "data.frames is 1: give 2 to 16"),
    ({"ends_share": 1.5}, "train.ends_share is 1.5: give 0 to 1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(fault: dict, message: str):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **fault)
