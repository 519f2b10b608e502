"""Drawn clips against closed forms: what is said of them is what is seen in them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.drawn import flow, scenes
from scipy import ndimage

from dynamicrafter_jax.data.synthetic import (
    CAMERA_MOTIONS,
    MOTIONS,
    OBJECT_MOTIONS,
    Renderer,
    Scene,
    draw_scene,
    trajectory,
)
from dynamicrafter_jax.data.synthetic.photographs import PHOTOGRAPHS, SPLITS, photograph
from dynamicrafter_jax.data.synthetic.scenes import SHAPES
from dynamicrafter_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SIZE = 64

DIGEST = """
import hashlib, sys
from dynamicrafter_jax.data.synthetic import Renderer, draw_scene, trajectory
digest = hashlib.sha256()
for number in (0, 3, 2**64 - 1):
    scene = draw_scene(number)
    digest.update(repr(scene).encode())
    digest.update(Renderer(scene, 32, 32).frames(trajectory(scene, 4)).tobytes())
print(digest.hexdigest(), {"jax", "tensorflow", "scipy"} & set(sys.modules))
"""


def with_shape(shape: str, **options) -> Scene:
    """The first scene with an object of this shape."""
    drawn = next(s for s in scenes() if s.sprite and s.sprite.shape == shape)
    return draw_scene(drawn.number, **options)


def centroid(mask: np.ndarray) -> np.ndarray:
    """The mean place (x, y) of a mask, in pixels."""
    y, x = np.indices(mask.shape) + 0.5
    return np.array([(mask * x).sum(), (mask * y).sum()]) / mask.sum()


def near(where: np.ndarray, distance: int) -> np.ndarray:
    """Whether a pixel is within so many steps of one that is meant."""
    return np.asarray(ndimage.binary_dilation(where, iterations=distance))


def masks(scene: Scene, num_frames: int, size: int = SIZE) -> np.ndarray:
    poses, renderer = trajectory(scene, num_frames), Renderer(scene, size, size)
    return np.stack([renderer.mask(poses.pose(i)) for i in range(num_frames)])


def test_clips_are_the_same_in_every_process_and_need_no_jax():
    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", DIGEST]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout

    first = run("1")
    assert first == run("2")
    assert first.split(" ", 1)[1].strip() == "set()"


def test_splits_share_nothing():
    for split in ("train", "validation"):
        assert not set(PHOTOGRAPHS[split]) & set(PHOTOGRAPHS["test"])
    seen = {}
    for split in SPLITS:
        drawn = [draw_scene(number, split) for number in range(100)]
        seen[split] = {scene.jitter for scene in drawn}
        assert len(seen[split]) == 100
        for scene in drawn:
            assert scene.background.photograph in PHOTOGRAPHS[split]
            assert scene.sprite is None or scene.sprite.photograph in PHOTOGRAPHS[split]
    assert len(set().union(*seen.values())) == 300


def test_photographs_are_there_and_their_terms_are_told():
    notices = (ROOT / "dynamicrafter_jax/assets/README.md").read_text()
    for name in PHOTOGRAPHS["train"] + PHOTOGRAPHS["test"]:
        assert f"{name}.jpg`" in notices
        assert max(photograph(name).shape) == 320
    files = {path.stem for path in (ROOT / "dynamicrafter_jax/assets/photographs").iterdir()}
    assert files | {"rocket", "coffee"} == {
        name for names in PHOTOGRAPHS.values() for name in names
    }


def test_kinds_of_clips_come_as_often_as_they_should():
    drawn = scenes()
    counts = np.bincount([len(scene.motions) for scene in drawn], minlength=4) / len(drawn)
    np.testing.assert_allclose(counts, (0.1, 0.75, 0.15, 0), atol=0.025)

    single = [scene.motions[0] for scene in drawn if len(scene.motions) == 1]
    shares = np.array([single.count(motion) for motion in MOTIONS]) / len(single)
    np.testing.assert_allclose(shares, 1 / 14, atol=0.02)

    camera_only = [s for s in drawn if s.motions and not set(s.motions) & set(OBJECT_MOTIONS)]
    assert np.mean([scene.sprite is None for scene in camera_only]) == pytest.approx(0.5, abs=0.05)
    assert all(scene.sprite for scene in drawn if set(scene.motions) & set(OBJECT_MOTIONS))

    # Two things at once are of different kinds, and at most one of them is the camera's.
    kinds = dict.fromkeys(("left", "right", "up", "down"), "move")
    kinds |= {"clockwise": "turn", "anticlockwise": "turn", "grow": "size", "shrink": "size"}
    for first, second in (scene.motions for scene in drawn if len(scene.motions) == 2):
        assert second in kinds
        assert first in CAMERA_MOTIONS or (kinds[first] == "move" and kinds[second] != "move")

    diameters = np.array([scene.sprite.diameter for scene in drawn if scene.sprite])
    assert 0.4 <= diameters.min() < 0.405 and 0.545 < diameters.max() <= 0.55

    fps = np.array([scene.fps for scene in drawn])
    assert (fps.min(), fps.max()) == (6, 24)
    # As many from 6 up to 12 as from 12 up to 24, as of a logarithm that is even.
    assert np.mean(fps < 12) == pytest.approx(np.log(12 / 6) / np.log(25 / 6), abs=0.03)
    jitter = np.array([scene.jitter for scene in drawn])
    assert 0.9 <= jitter.min() < 0.91 and 1.09 < jitter.max() <= 1.1


def test_what_is_given_leaves_all_else():
    drawn = draw_scene(17)
    other = draw_scene(17, motions=("up",), fps=9)
    assert (other.motions, other.fps) == (("up",), 9)
    same = dataclasses.replace(
        other, motions=drawn.motions, fps=drawn.fps, sprite=drawn.sprite, caption=drawn.caption
    )
    assert same == drawn
    assert draw_scene(17, motions=drawn.motions, fps=drawn.fps) == drawn


def test_first_frame_tells_nothing_of_the_motion():
    for number in range(4):
        frames = [
            Renderer(scene, SIZE, SIZE).frame(trajectory(scene, 1).pose(0))
            for scene in (
                draw_scene(number, motions=(motion,), fps=6 + place)
                for place, motion in enumerate(OBJECT_MOTIONS)
            )
        ]
        assert all(np.array_equal(frame, frames[0]) for frame in frames)
        cameras = [draw_scene(number, motions=(motion,)) for motion in CAMERA_MOTIONS]
        cameras.append(draw_scene(number, motions=()))
        first = [Renderer(s, SIZE, SIZE).frame(trajectory(s, 1).pose(0)) for s in cameras]
        assert all(np.array_equal(frame, first[0]) for frame in first)
        if draw_scene(number).sprite:
            assert np.array_equal(first[0], frames[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("motion", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_object_moves_as_said(shape, motion, way):
    scene = with_shape(shape, motions=(motion,), fps=24)
    assert scene.sprite
    found = [centroid(mask) for mask in masks(scene, 16)[::5]]
    for i, place in zip(range(0, 16, 5), found, strict=True):
        moved = 0.14 * scene.jitter * i / 24 * np.array(way)
        expected = (np.array(scene.sprite.position) + moved) * SIZE
        np.testing.assert_allclose(place, expected, atol=0.12)


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
def test_camera_moves_as_said(motion):
    scene = with_shape("star", motions=(motion,), fps=24)
    assert scene.sprite
    t = scene.jitter * 15 / 24
    centre = 0.5 + 0.12 * t * np.array(
        {"pan_left": (-1, 0), "pan_right": (1, 0), "pan_up": (0, -1), "pan_down": (0, 1)}.get(
            motion, (0, 0)
        )
    )
    width = {"zoom_in": np.exp(-0.22 * t), "zoom_out": np.exp(0.22 * t)}.get(motion, 1.0)
    first, *_, last = masks(scene, 16)
    expected = ((np.array(scene.sprite.position) - centre) / width + 0.5) * SIZE
    np.testing.assert_allclose(centroid(last), expected, atol=0.12)
    assert last.sum() / first.sum() == pytest.approx(width**-2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_object_changes_its_size_as_said(shape, motion, sign):
    scene = with_shape(shape, motions=(motion,), fps=20)
    area = masks(scene, 12, size=96).sum(axis=(1, 2))
    expected = np.exp(sign * 0.30 * scene.jitter * np.arange(12) / 20)
    np.testing.assert_allclose(np.sqrt(area / area[0]), expected, rtol=0.015)


def axis_of(mask: np.ndarray) -> float:
    """The angle of the longest axis, in degrees clockwise, by second moments."""
    y, x = np.indices(mask.shape)
    x, y = x + 0.5 - centroid(mask)[0], y + 0.5 - centroid(mask)[1]
    xx, xy, yy = (mask * x * x).sum(), (mask * x * y).sum(), (mask * y * y).sum()
    return float(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))


@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_object_turns_as_said(motion, sign):
    scene = with_shape("half-moon", motions=(motion,), fps=12)
    assert scene.sprite
    angles = np.array([axis_of(mask) for mask in masks(scene, 16)])
    # The flat side of a half-moon is its longest; with no angle it is level.
    expected = scene.sprite.angle + sign * 50 * scene.jitter * np.arange(16) / 12
    error = (angles - expected + 90) % 180 - 90
    np.testing.assert_allclose(error, 0, atol=1.0)


def test_pattern_turns_with_the_object():
    drawn = next(
        scene
        for scene in scenes()
        if scene.sprite and scene.sprite.shape == "ball" and scene.sprite.pattern == "halves"
    )
    scene = draw_scene(drawn.number, motions=("clockwise",), fps=10)
    assert scene.sprite
    renderer, poses = Renderer(scene, 128, 128), trajectory(scene, 16)
    covered = renderer.mask(poses.pose(0)) > 0.99
    x, y = scene.sprite.position
    rows, columns = np.indices((128, 128)) + 0.5
    angles = []
    for i in (0, 8, 15):
        grey = renderer.frame(poses.pose(i)).astype(float).sum(axis=-1)
        bright = covered & (grey > grey[covered].mean())
        angles.append(
            np.degrees(
                np.arctan2((rows[bright] - y * 128).mean(), (columns[bright] - x * 128).mean())
            )
        )
    turned = (np.array(angles[1:]) - angles[0]) % 360
    np.testing.assert_allclose(turned, 50 * scene.jitter * np.array([0.8, 1.5]), atol=5)


def test_fps_alone_sets_the_speed():
    moved = {}
    for fps in (6, 12, 24):
        scene = with_shape("heart", motions=("left",), fps=fps)
        first, *_, last = masks(scene, 6)
        moved[fps] = centroid(last)[0] - centroid(first)[0]
    assert moved[6] / moved[12] == pytest.approx(2, rel=0.03)
    assert moved[12] / moved[24] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("number", range(4))
def test_flow_leads_from_each_frame_to_the_next(number):
    motions = [("pan_left", "clockwise"), ("zoom_in", "right"), ("down", "grow"), ("zoom_out",)]
    scene = draw_scene(number, motions=motions[number], fps=8)
    poses, renderer = trajectory(scene, 4), Renderer(scene, SIZE, SIZE)
    frames = renderer.frames(poses).astype(float)
    moves = flow(scene, poses, SIZE, SIZE)
    assert moves.shape == (3, SIZE, SIZE, 2) and moves.dtype == np.float32
    rows, columns = np.indices((SIZE, SIZE))
    for i, move in enumerate(moves):
        x, y = columns + move[..., 0], rows + move[..., 1]
        back = np.stack(
            [ndimage.map_coordinates(frames[i + 1][..., c], (y, x), order=1) for c in range(3)], -1
        )
        # At its edge the object covers the background, or the other way round.
        mask = renderer.mask(poses.pose(i))
        edge = near((mask > 0.01) & (mask < 0.99), 3)
        inside = (x > 0) & (x < SIZE - 1) & (y > 0) & (y < SIZE - 1) & ~edge
        error = np.abs(back - frames[i])[inside].mean()
        still = np.abs(frames[i + 1] - frames[i])[inside].mean()
        assert inside.mean() > 0.5
        assert error < min(3.0, still / 2)


def test_flow_of_the_camera_in_closed_form():
    scene = draw_scene(5, motions=("pan_right",), fps=10)
    moves = flow(scene, trajectory(scene, 3), 40, 60)
    np.testing.assert_allclose(moves[..., 0], -0.12 * scene.jitter / 10 * 60, rtol=1e-5)
    np.testing.assert_allclose(moves[..., 1], 0, atol=1e-5)

    scene = draw_scene(5, motions=("zoom_in",), fps=10)
    moves = flow(scene, trajectory(scene, 2), 40, 60)
    factor = np.exp(0.22 * scene.jitter / 10) - 1
    np.testing.assert_allclose(moves[0, 7, :, 1], factor * (7.5 - 20), rtol=1e-4)
    np.testing.assert_allclose(moves[0, :, 50, 0], factor * (50.5 - 30), rtol=1e-4)


def test_nothing_moves_in_a_still_clip():
    scene = draw_scene(2, motions=())
    frames = Renderer(scene, SIZE, SIZE).frames(trajectory(scene, 5))
    assert np.array_equal(frames, np.broadcast_to(frames[0], frames.shape))
    assert not flow(scene, trajectory(scene, 5), 8, 8).any()


def test_object_stands_out():
    """Along its line an object differs from what is behind it, wherever it is."""
    for number in range(30):
        scene = draw_scene(number, motions=("left",))
        renderer, pose = Renderer(scene, SIZE, SIZE), trajectory(scene, 1).pose(0)
        frame, mask = renderer.frame(pose).astype(float), renderer.mask(pose)
        line = (mask > 0.9) & near(mask < 0.1, 2)
        outside = (mask < 0.01) & near(mask > 0.5, 3)
        difference = frame[line].mean(axis=0) - frame[outside].mean(axis=0)
        assert np.abs(difference).max() > 40, number


def test_backgrounds_show_camera_motion():
    """A pan changes every background visibly."""
    for number in range(20):
        scene = draw_scene(number, motions=("pan_left",), fps=6)
        frames = Renderer(scene, SIZE, SIZE).frames(trajectory(scene, 16)).astype(float)
        assert np.abs(frames[-1] - frames[0]).mean() > 3, number


@pytest.mark.parametrize("number", [0, 1, 5, 7])
def test_sizes_show_the_same(number):
    scene = draw_scene(number)
    pose = trajectory(scene, 16).pose(12)
    small = Renderer(scene, 48, 64).frame(pose).astype(float)
    large = Renderer(scene, 96, 128).frame(pose).astype(float)
    reduced = large.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(reduced - small).mean() < 3
    # Not because both are flat.
    assert np.abs(small - small.mean(axis=(0, 1))).mean() > 9


def test_views_beyond_the_canvas_see_its_mirror_image():
    scene = draw_scene(3, motions=())
    renderer = Renderer(dataclasses.replace(scene, sprite=None), 40, 40)
    pose = trajectory(scene, 1).pose(0)
    inside = pose._replace(view_centre=np.array([1.6 - 0.55, 0.5]))
    beyond = pose._replace(view_centre=np.array([1.6 + 0.55, 0.5]))
    mirrored = renderer.frame(inside)[:, ::-1].astype(int)
    assert np.abs(renderer.frame(beyond) - mirrored).max() <= 2


def test_a_sprite_is_drawn_alike_wherever_the_frame_ends():
    renderer, pose = Renderer(draw_scene(1), 32, 32), trajectory(draw_scene(1), 1).pose(0)
    whole = renderer.mask(pose._replace(position=pose.view_centre))
    assert (whole > 0).mean() > 0.1
    across = np.array([0.25, -0.5]) * pose.view_width  # whole pixels
    shifted = renderer.mask(pose._replace(position=pose.view_centre + across))
    np.testing.assert_array_equal(shifted[:16, 8:], whole[16:, :24])
    away = pose._replace(position=pose.view_centre + 3)
    assert not renderer.mask(away).any()
    np.testing.assert_array_equal(renderer.frame(away), renderer.background(away))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="clip -1 can't be drawn"):
        draw_scene(-1)
    with pytest.raises(UserError, match="fps is 0"):
        draw_scene(0, fps=0)


def test_views_from_beyond_the_mirror_images_are_drawn_too():
    scene = draw_scene(1)
    pose = trajectory(scene, 1).pose(0)._replace(view_width=9.0)
    assert Renderer(scene, 16, 16).frame(pose).shape == (16, 16, 3)
