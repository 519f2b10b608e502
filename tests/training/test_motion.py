"""How much moves, against closed forms."""

import numpy as np
import pytest

from dynamicrafter_jax.training.motion import MotionMonitor, motion


def moving(step: int, frames: int = 4, count: int = 2) -> np.ndarray:
    """Videos that brighten by `step` levels a frame."""
    levels = np.arange(frames, dtype=np.uint8) * step
    return np.tile(levels[None, :, None, None, None], (count, 1, 8, 8, 3))


def test_motion_is_the_mean_difference_of_frames():
    np.testing.assert_allclose(motion(moving(51)), [0.2, 0.2])
    np.testing.assert_allclose(motion(moving(51)[:, ::-1]), [0.2, 0.2])
    np.testing.assert_allclose(motion(moving(0)), [0, 0])
    np.testing.assert_allclose(motion(moving(9, frames=1)), [0, 0])
    half = moving(51)
    half[:, :, :4] = 7
    np.testing.assert_allclose(motion(half), [0.1, 0.1])
    noise = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 7, 3), dtype=np.uint8)
    exact = np.abs(np.diff(noise.astype(float) / 255, axis=1)).mean((1, 2, 3, 4))
    np.testing.assert_allclose(motion(noise), exact)


def test_motion_of_samples_is_compared_to_that_of_real_clips():
    monitor = MotionMonitor()
    assert monitor.check(moving(51)) == {"motion/samples": pytest.approx(0.2)}
    unread = np.zeros_like(moving(1))
    monitor.observe(np.concatenate([moving(51), unread]), np.asarray([1, 1, 0, 0], np.float32))
    monitor.observe(moving(17))
    assert monitor.check(moving(17)) == {
        "motion/samples": pytest.approx(1 / 15),
        "motion/real": pytest.approx(2 / 15),
        "motion/ratio": pytest.approx(0.5),
    }


def test_still_clips_have_no_ratio():
    monitor = MotionMonitor()
    monitor.observe(moving(0))
    assert monitor.check(moving(17)) == {"motion/samples": pytest.approx(1 / 15), "motion/real": 0}


def test_motion_that_stays_low_is_warned_of(recwarn: pytest.WarningsRecorder):
    monitor = MotionMonitor(threshold=0.25, patience=3)
    monitor.observe(moving(50))
    said = []
    for step in (10, 10, 20, 10, 10, 10, 10, 10, 10, 10):
        monitor.check(moving(step))
        said.append(len(recwarn))
    assert said == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert str(recwarn[0].message) == (
        "samples move 0.20 times as much as real clips, below 0.25 for 3 samplings in a row: "
        "motion may be collapsing"
    )


def test_the_latest_real_clips_count():
    monitor = MotionMonitor()
    monitor.observe(moving(50, count=10))
    monitor.observe(moving(5, count=256))
    assert monitor.check(moving(5))["motion/ratio"] == pytest.approx(1)
