"""How videos of drawn clips are judged, and what a model has to do without."""

import benchmark_modules
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.errors import UserError

demo_quality, drawn_clips, tracking = benchmark_modules.load(
    "demo_quality", "drawn_clips", "tracking"
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
    judged = demo_quality.judge(clips, whole, share=0.3)
    assert judged.overall == judged.named == 1
    assert set(judged.by_motion) == {clip.scene.motions[0] for clip in clips}
    assert judged.named_by_motion == dict.fromkeys(judged.by_motion, 1)
    assert judged.speed == pytest.approx(1)

    backwards = [change_of(clip, -0.9 * s) for clip, s in zip(clips, seconds, strict=True)]
    judged = demo_quality.judge(clips, backwards, share=0.3)
    assert judged.overall == 0
    assert judged.speed == pytest.approx(-1)

    still = [Change()] * len(clips)
    assert demo_quality.judge(clips, still, share=0.3).overall == 0

    # All else moves too.
    besides = [
        Change(*(value or 0.5 * s for value in change))
        for change, s in zip(whole, seconds, strict=True)
    ]
    judged = demo_quality.judge(clips, besides, share=0.3)
    assert (judged.overall, judged.named) == (0, 1)
    assert set(judged.by_motion.values()) == {0}
    assert set(judged.named_by_motion.values()) == {1}


def test_a_crossfade_goes_from_end_to_end():
    videos = np.zeros((1, 5, 2, 2, 3), np.uint8)
    videos[:, -1] = 200
    faded = demo_quality.crossfade(videos)
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
        assert demo_quality.distance(videos, others) < demo_quality.distance(videos, still)


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


def _fitted(video, width):
    return np.resize(np.moveaxis(video, 2, 0), (width, *video.shape[:2], 3)).transpose(1, 2, 0, 3)


def test_the_table_has_every_measure():
    motions = {
        "overall": 0.97,
        "named": 0.98,
        "by_motion": {"left": 0.9, "still": 1.0},
        "named_by_motion": {"left": 0.92},
        "speed": 0.9,
    }
    found = {
        "clips": 512,
        "ablated_clips": 128,
        "steps": 16,
        "main": {
            "motions": motions,
            "real": motions,
            "first_frame_db": 27.5,
            "vae_db": 28.6,
            "between_db": 25.0,
            "crossfade_db": 20.0,
            "distance": 1.0,
            "still_distance": 9.0,
            "seconds_per_clip": 2.0,
        },
        "ablated": {
            name: {"motion": 0.1, "first_frame_db": 20.0} for name in drawn_clips.ABLATIONS
        },
        "curve": {"3000": {"motion": 0.5, "distance": 3.0}},
    }
    table = demo_quality.tables(found)
    for part in (
        "97.0%",
        "98.0%",
        "27.50 dB",
        "23.00 dB",
        "below 9.00",
        "| left | 90.0% | 90.0% | 92.0% |",
        "| still | 100.0% | 100.0% | |",
        "| 3000 | 50.0%",
    ):
        assert part in table


def test_the_curve_s_models_are_named_by_their_steps():
    assert demo_quality._curve(["20=a", "40=b=c"]) == {"20": "a", "40": "b=c"}
    for entries, message in (
        (["half=a"], "--curve=half=a is not STEP=MODEL"),
        (["20"], "--curve=20 is not STEP=MODEL"),
        (["20=a", "20=b"], "two models of step 20"),
    ):
        with pytest.raises(UserError, match=message):
            demo_quality._curve(entries)
