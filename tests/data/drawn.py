"""Scenes that several tests look at, and how what is seen in them moves."""

import functools

import numpy as np
from jaxtyping import Float32

from dynamicrafter_jax.data.synthetic import Renderer, Scene, Trajectory, draw_scene


@functools.cache
def scenes() -> tuple[Scene, ...]:
    """The first scenes of the training split: enough to count how often something comes.

    They are shared, since drawing them with every call checked takes its time.
    """
    return tuple(draw_scene(number) for number in range(2000))


def flow(
    scene: Scene, trajectory: Trajectory, height: int, width: int
) -> Float32[np.ndarray, "_ h w 2"]:
    """Returns the exact optical flow of a clip.

    Args:
        scene: What is seen.
        trajectory: Of t frames.
        height: Of frames, in pixels.
        width: Of frames, in pixels.

    Returns:
        For each frame but the last, t - 1 in all, how far (x, y) what is seen in each pixel has
        moved in the next frame, in pixels. Pixels that the sprite covers half or more move as it
        does.
    """
    renderer = Renderer(scene, height, width)
    pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    screen = (pixels - (width / 2, height / 2)) / width  # frame widths from the middle
    moved = []
    for i in range(len(trajectory.scale) - 1):
        now, then = trajectory.pose(i), trajectory.pose(i + 1)
        place = screen * now.view_width + now.view_centre
        turn = np.radians(then.angle - now.angle)
        similarity = (
            np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            * (then.scale / now.scale)
        )  # fmt: skip
        with_sprite = (place - now.position) @ similarity.T + then.position
        place = np.where(renderer.mask(now)[..., None] >= 0.5, with_sprite, place)
        moved.append(((place - then.view_centre) / then.view_width - screen) * width)
    return np.asarray(moved, np.float32).reshape(-1, height, width, 2)
