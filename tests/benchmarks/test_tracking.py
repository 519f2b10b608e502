"""What moves in a video is found from its pixels."""

from typing import Any

import benchmark_modules
import numpy as np
import pytest

from dynamicrafter_jax.data.synthetic import Motion, Renderer, draw_scene, trajectory

(tracking,) = benchmark_modules.load("tracking")

FPS, SECONDS = 10, 1.5


def found(number: int, motions: tuple[Motion, ...]) -> tuple[Any, float]:
    """What is found in a real clip, and its jitter."""
    scene = draw_scene(number, "test", motions=motions, fps=FPS)
    video = Renderer(scene, 64, 64).frames(trajectory(scene, 16))
    noise = np.random.default_rng(number).normal(0, 8, video.shape)  # as a model may leave it
    noisy = np.clip(video + noise, 0, 255).astype(np.uint8)
    return tracking.find_change(scene, noisy), scene.jitter


@pytest.mark.parametrize(
    ("number", "motions"),
    [(3, ()), (7, ("left",)), (8, ("zoom_in",)), (11, ("up", "clockwise"))],
)
def test_motions_are_found_with_their_speed(number, motions):
    change, jitter = found(number, motions)
    for motion in motions:
        assert tracking.made(change, motion) == pytest.approx(SECONDS * jitter, rel=0.15)
    assert tracking.shows(change, motions, SECONDS, share=0.3)
    assert not tracking.shows(change, (*motions, "shrink"), SECONDS, share=0.3)


def test_a_change_is_shown_only_if_it_is_the_one_that_was_named():
    change = tracking.Change(right=-1.0, grown=0.2)
    assert tracking.shows(change, ("left",), 2.0, share=0.3)
    assert not tracking.shows(change, ("right",), 2.0, share=0.3)
    assert not tracking.shows(change, (), 2.0, share=0.3)
    assert not tracking.shows(change, ("left", "grow"), 2.0, share=0.3)
    assert not tracking.shows(change, ("left",), 0.5, share=0.3)  # so soon, what has grown counts
    assert tracking.made(change, "left") == 1.0
    assert tracking.made(change, "shrink") == -0.2


@pytest.mark.parametrize(
    "motion", ["right", "down", "anticlockwise", "shrink", "pan_up", "zoom_out"]
)
def test_a_second_of_a_change_is_a_second_of_the_motion(motion):
    scene = draw_scene(5, "test", motions=(motion,), fps=FPS)
    wanted = trajectory(scene, FPS + 1).pose(FPS)
    empty = tracking.Change()
    names = {
        "right": empty._replace(right=scene.jitter),
        "down": empty._replace(down=scene.jitter),
        "anticlockwise": empty._replace(clockwise=-scene.jitter),
        "shrink": empty._replace(grown=-scene.jitter),
        "pan_up": empty._replace(pan_down=-scene.jitter),
        "zoom_out": empty._replace(zoomed_in=-scene.jitter),
    }
    pose = tracking.pose_after(trajectory(scene, 1).pose(0), names[motion])
    for ours, theirs in zip(pose, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
