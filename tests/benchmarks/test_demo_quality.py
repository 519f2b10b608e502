"""How videos of drawn clips are judged, and what a model has to do without."""

from typing import Any

import benchmark_modules
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo

demo_quality, demo_tables, drawn_clips, judging, keeping, tracking = benchmark_modules.load(
    "demo_quality", "demo_tables", "drawn_clips", "judging", "keeping", "tracking"
)
Change = tracking.Change


def clips_that_move(count=8):
    """The first clips of the test split that name one motion."""
    drawn = (drawn_clips.draw(number, 4, 16) for number in range(200))
    return [clip for clip in drawn if len(clip.scene.motions) == 1][:count]


def change_of(clip, seconds):
    """What the clip's one motion makes in some time."""
    part, sign = tracking._PARTS[clip.scene.motions[0]]
    return Change()._replace(**{Change._fields[part]: sign * seconds})


def test_a_clip_that_does_what_it_is_told_is_right():
    clips = clips_that_move()
    seconds = [3 / clip.scene.fps for clip in clips]
    whole = [change_of(clip, 0.9 * s) for clip, s in zip(clips, seconds, strict=True)]
    judged = judging.judge(clips, whole, share=0.3)
    assert judged.overall == judged.single == judged.named == 1
    assert set(judged.by_motion) == {clip.scene.motions[0] for clip in clips}
    assert judged.named_by_motion == dict.fromkeys(judged.by_motion, 1)
    assert judged.speed == judged.named_speed == pytest.approx(1)

    mixed = [change if i % 2 else Change() for i, change in enumerate(whole)]
    judged = judging.judge(clips, mixed, share=0.3)
    assert judged.speed < 0.9 and judged.named_speed == pytest.approx(1)

    backwards = [change_of(clip, -0.9 * s) for clip, s in zip(clips, seconds, strict=True)]
    judged = judging.judge(clips, backwards, share=0.3)
    assert judged.overall == 0
    assert judged.speed == pytest.approx(-1)

    still = [Change()] * len(clips)
    assert judging.judge(clips, still, share=0.3).overall == 0

    # All else moves too.
    besides = [
        Change(*(value or 0.5 * s for value in change))
        for change, s in zip(whole, seconds, strict=True)
    ]
    judged = judging.judge(clips, besides, share=0.3)
    assert (judged.overall, judged.named) == (0, 1)
    assert set(judged.by_motion.values()) == {0}
    assert set(judged.named_by_motion.values()) == {1}


def test_clips_with_one_motion_are_counted_by_themselves():
    (one,) = clips_that_move(1)
    drawn = (drawn_clips.draw(number, 4, 16) for number in range(200))
    two = next(clip for clip in drawn if len(clip.scene.motions) == 2)
    right = change_of(one, 3 / one.scene.fps)
    judged = judging.judge([one, two], [right, Change()], share=0.3)
    assert (judged.overall, judged.single) == (0.5, 1)


def test_the_last_frame_counts_where_nothing_new_comes_into_view():
    motions = ("zoom_in", "zoom_out", "pan_left", "grow", "shrink", "clockwise")
    clips = [drawn_clips.draw(i, 4, 16, motions=(one,)) for i, one in enumerate(motions)]
    assert [clip.scene.motions for clip in clips] == [(one,) for one in motions]
    videos = judging.videos_of(clips)
    counted = [0, 3, 5]
    videos[[1, 2, 4], -1] ^= 255
    videos[:, :-1] ^= 255
    close = judging.videos_of(clips)[counted, -1] // 2
    videos[counted, -1] = close
    wanted = drawn_clips.psnr(close, judging.videos_of(clips)[counted, -1]).mean()
    assert judging.last_frame_db(clips, videos) == pytest.approx(wanted)


def test_sharpness_is_relative_and_of_the_last_frames():
    ramp = np.zeros((1, 6, 8, 8, 3), np.uint8)
    ramp[:] = (10 * np.arange(8))[:, None]  # to the right
    assert judging.sharpness(ramp, ramp) == 1
    assert judging.sharpness(ramp, ramp // 2) == pytest.approx(0.5)
    assert judging.sharpness(ramp, ramp.swapaxes(2, 3)) == pytest.approx(1)
    blurred = ramp.copy()
    blurred[:, :2] = 0
    assert judging.sharpness(ramp, blurred) == 1
    blurred[:, 2:4] = 0
    assert judging.sharpness(ramp, blurred) == pytest.approx(0.5)


def test_weights_are_counted_as_the_package_holds_them():
    assert demo_quality.megabytes({"a": np.zeros((1000, 500)), "b": np.zeros(1000)}) == 1.002


def test_a_crossfade_goes_from_end_to_end():
    videos = np.zeros((1, 5, 2, 2, 3), np.uint8)
    videos[:, -1] = 200
    faded = judging.crossfade(videos)
    assert faded[0, :, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]


def test_decibels_of_known_noise():
    wanted = np.full((2, 8, 8, 3), 100, np.uint8)
    made = wanted + np.array([10, 1], np.uint8)[:, None, None, None]
    np.testing.assert_allclose(drawn_clips.psnr(made, wanted), [28.13, 48.13], atol=0.01)


def test_features_tell_stills_from_videos():
    videos = np.stack([drawn_clips.draw(number, 6, 32).video for number in range(40)])
    others = np.stack([drawn_clips.draw(number, 6, 32).video for number in range(40, 80)])
    still = np.repeat(others[:, :1], 6, axis=1)
    assert drawn_clips.simple_features(videos).shape[1] == 16 + 16 + 5 + 12
    with pytest.warns(UserWarning):  # fewer clips than features
        assert judging.distance(videos, others) < judging.distance(videos, still)


@pytest.mark.parametrize("without", ["nothing", "prompt", "text", "concat", "image"])
def test_only_what_is_taken_away_becomes_zero(without):
    condition = Conditioning(*(jnp.full((1, 2), value) for value in (1.0, 2.0, 3.0, 4.0)))
    (left,) = drawn_clips._encode_without(
        lambda *_, **__: (condition,), shape=(1, 1, 1, 1), num_passes=1, without=without
    )
    for name, value in zip(Conditioning._fields[:4], (1.0, 2.0, 3.0, 4.0), strict=True):
        assert (np.asarray(getattr(left, name)) == (0.0 if name == without else value)).all()


def test_each_clip_is_sampled_alike_in_any_batch():
    animate = tiny.micro()
    chosen = animate.config.sampling
    clips = [drawn_clips.draw(number, chosen.num_frames, chosen.height) for number in range(3)]
    clips = [clip._replace(video=_fitted(clip.video, chosen.width)) for clip in clips]
    two, three = (drawn_clips.Generator(animate, size, steps=2)(clips) for size in (2, 3))
    assert two.shape == (3, chosen.num_frames, chosen.height, chosen.width, 3)
    assert np.abs(two.astype(int) - three).max() <= 1


def test_what_is_kept_is_made_once_and_whole(tmp_path):
    file = tmp_path / "made.npy"

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeping.kept(file, fail)
    assert keeping.kept(file, lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert keeping.kept(file, fail).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [file]


def test_changes_are_kept_for_the_same_scenes_and_videos(tmp_path, monkeypatch):
    (one, two), videos = clips_that_move(2), np.zeros((2, 2, 4, 4, 3), np.uint8)
    searched = []

    def find_changes(clips, videos, processes):
        searched.append(len(clips))
        return [Change(right=clip.scene.fps, down=processes) for clip in clips]

    monkeypatch.setattr(keeping, "find_changes", find_changes)
    monkeypatch.setattr(keeping, "_AT_ONCE", 1)

    def found(clips, videos):
        return keeping.find_kept_changes(clips, videos, 3, tmp_path)

    wanted = [Change(right=clip.scene.fps, down=3) for clip in (one, two)]
    assert found([one, two], videos) == found([one, two], videos.copy()) == wanted
    assert searched == [1, 1]
    found([one], videos[:1])
    assert len(searched) == 2
    found([one], videos[:1] + 1)
    assert len(searched) == 3


def test_what_a_folder_has_is_not_sampled_again(tmp_path, monkeypatch):
    sampled = []

    def sample(self, clips, first, without, interpolate):
        sampled.append((first, without, interpolate))
        return np.full((len(clips), 1, 1, 1, 3), first, np.uint8)

    monkeypatch.setattr(drawn_clips.Generator, "_sample", sample)
    clips = [drawn_clips.draw(number, 2, 16) for number in range(3)]

    def model(section, **values):
        config = tiny.micro().config.copy_and_resolve_references()
        config[section].update(values)
        return ImageToVideo(config, tiny.micro().params)

    def videos(steps=2, clips=clips, animate=None, **how):
        generator = keeping.KeepingGenerator(animate or tiny.micro(), 2, tmp_path, steps=steps)
        return generator(clips, **how).ravel().tolist()

    assert videos() == videos() == [0] * 6 + [2] * 3
    assert sampled == [(0, "nothing", False), (2, "nothing", False)]
    changes: tuple[Any, ...] = (
        {"without": "text"},
        {"interpolate": True},
        {"steps": 3},
        {"clips": clips[::-1]},
        {"animate": model("vae", scale_factor=0.5)},
    )
    for count, changed in enumerate(changes, 2):
        videos(**changed)
        assert len(sampled) == 2 * count
    for same in (model("train", learning_rate=1.0), model("sampling", presets={"fast": {}})):
        videos(animate=same)
        assert len(sampled) == 2 + 2 * len(changes)

    # What takes time is timed with nothing kept, and then known.
    generator = keeping.KeepingGenerator(tiny.micro(), 2, tmp_path, steps=2)
    sampled.clear()
    assert generator.seconds_per_clip(clips) == generator.seconds_per_clip(clips) > 0
    assert sampled == [(0, "nothing", False)] * 2


def _fitted(video, width):
    return np.resize(np.moveaxis(video, 2, 0), (width, *video.shape[:2], 3)).transpose(1, 2, 0, 3)


def measured(**replaced):
    """One model's measures, made up."""
    motions = {
        "overall": 0.93,
        "single": 0.97,
        "named": 0.98,
        "speed": 0.9,
        "named_speed": 0.95,
        "by_motion": {},
    }
    made_up = {
        "motions": motions,
        "first_frame_db": 27.5,
        "last_frame_db": 22.5,
        "vae_db": 28.6,
        "between_db": 25.0,
        "sharpness": 0.85,
        "distance": 1.0,
        "megabytes": 24.1,
    }
    return made_up | replaced


def test_the_table_has_every_measure():
    shares = dict.fromkeys(demo_quality.MOTIONS, 0.5) | {"left": 0.9, "right": 0.8}
    found = {
        "clips": 512,
        "ablated_clips": 128,
        "each_clips": 64,
        "still_share": 0.1,
        "steps": 16,
        "seconds_per_clip": 2.0,
        "main": measured(),
        "before": [measured(), measured(distance=6.0)],
        "real": measured()["motions"] | {"overall": 0.99},
        "crossfade_db": 20.0,
        "still_distance": 9.0,
        "each": {
            "made": {"by_motion": shares, "named_by_motion": shares},
            "real": {"by_motion": dict.fromkeys(shares, 1.0)},
        },
        "ablated": {
            name: {"motion": 0.12, "first_frame_db": 20.0} for name in drawn_clips.ABLATIONS
        },
        "curve": {"300000": {"motion": 0.5, "distance": 3.0}},
    }
    table = demo_tables.tables(found)
    for part in (
        "one motion in the clip | 97.0% | 97.0% | 95 % |",
        "the same, all clips | 93.0% | 99.0% | 90 % |",
        "27.50 dB |  | 27.10 dB",
        "of clockwise, anticlockwise, grow, zoom in | 22.50 dB",
        "85% |  | 80 %",
        "23.00 dB: 3 above cross-fading",
        "| 1.00 | 6.00 |",
        "half of that: 3.00.",
        "24.1 MB",
        "| left | 90.0% | 85.0% | 100.0% | 90.0% |",
        "| right | 80.0% | 85.0% |",
        "(an empty one) | 12.0% | at most 15.0% |",
        "| image tokens | 12.0% |  | 20.00 dB |",
        "10.0% are still",
        "| 300,000 | 50.0% | 3.00 |",
    ):
        assert part in table, part
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert "nan" not in table and len(lines) == 14 + 14 + 16 + 7 + 3

    alone = demo_tables.tables(found | {"before": None, "each": None, "curve": {}})
    lines = [line for line in alone.splitlines() if line.startswith("|")]
    assert "before" not in alone and len(lines) == 14 + 7


def test_the_curve_s_models_are_named_by_the_clips_that_they_saw():
    assert demo_quality._curve(["20=a", "40=b=c"]) == {"20": "a", "40": "b=c"}
    for entries, message in (
        (["half=a"], "--curve=half=a is not CLIPS=MODEL"),
        (["20"], "--curve=20 is not CLIPS=MODEL"),
        (["20=a", "20=b"], "two models of 20 clips"),
    ):
        with pytest.raises(UserError, match=message):
            demo_quality._curve(entries)
