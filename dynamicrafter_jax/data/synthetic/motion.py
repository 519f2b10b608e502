"""Motions, and the positions that follow from them.

Lengths are in frame widths: the view of the first frame is one wide, and its centre is (0.5, 0.5)
in scene coordinates. y points down. Angles are in degrees, clockwise on the screen.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

ObjectMotion = Literal[
    "left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink"
]
CameraMotion = Literal["pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out"]
Motion = ObjectMotion | CameraMotion

OBJECT_MOTIONS: tuple[ObjectMotion, ...] = get_args(ObjectMotion)
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)
MOTIONS: tuple[Motion, ...] = OBJECT_MOTIONS + CAMERA_MOTIONS
TRANSLATIONS = OBJECT_MOTIONS[:4]

TRANSLATION = 0.14
"""Speed of an object, in widths a second, before the clip's jitter."""
TURN = 50.0
"""Speed at which it turns, in degrees a second."""
GROWTH = 0.30
"""Rate at which it grows or shrinks: after s seconds, its scale is exp(+-GROWTH s)."""
PAN = 0.12
"""Speed of the camera, in widths a second."""
ZOOM = 0.22
"""Rate at which it zooms: after s seconds, the width of its view is exp(+-ZOOM s)."""

_WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TURNS = {"clockwise": TURN, "anticlockwise": -TURN}
_GROWTHS = {"grow": GROWTH, "shrink": -GROWTH}
_ZOOMS = {"zoom_in": -ZOOM, "zoom_out": ZOOM}


class Pose(NamedTuple):
    """Where everything is in one frame.

    Attributes:
        position: The sprite's centre (x, y), in scene coordinates.
        scale: Its size, relative to the first frame.
        angle: How far it is turned, in degrees clockwise.
        view_centre: The centre (x, y) of the camera's view.
        view_width: The width of the camera's view.
    """

    position: Float64[np.ndarray, "2"]
    scale: float
    angle: float
    view_centre: Float64[np.ndarray, "2"]
    view_width: float


class Trajectory(NamedTuple):
    """Where everything is in all frames of a clip; see `Pose`."""

    position: Float64[np.ndarray, "t 2"]
    scale: Float64[np.ndarray, " t"]
    angle: Float64[np.ndarray, " t"]
    view_centre: Float64[np.ndarray, "t 2"]
    view_width: Float64[np.ndarray, " t"]

    def pose(self, frame: int) -> Pose:
        """Returns where everything is in one frame."""
        return Pose(
            self.position[frame],
            float(self.scale[frame]),
            float(self.angle[frame]),
            self.view_centre[frame],
            float(self.view_width[frame]),
        )


def trajectory_from(
    start: Pose, motions: tuple[Motion, ...], jitter: float, seconds: Float64[np.ndarray, " t"]
) -> Trajectory:
    """Follows constant motions from a pose.

    Args:
        start: Where everything is at 0 seconds.
        motions: The motions, all at once.
        jitter: A factor on all rates.
        seconds: The time of each frame.
    """
    time = seconds * jitter
    position = np.tile(np.asarray(start.position, np.float64), (len(time), 1))
    view_centre = np.tile(np.asarray(start.view_centre, np.float64), (len(time), 1))
    scale, angle = np.full(len(time), start.scale), np.full(len(time), start.angle)
    view_width = np.full(len(time), start.view_width)
    for motion in motions:
        if motion in _WAYS:
            position += np.outer(time * TRANSLATION, _WAYS[motion])
        elif motion.startswith("pan_"):
            view_centre += np.outer(time * PAN, _WAYS[motion.removeprefix("pan_")])
        elif motion in _TURNS:
            angle += time * _TURNS[motion]
        elif motion in _GROWTHS:
            scale *= np.exp(time * _GROWTHS[motion])
        else:
            view_width *= np.exp(time * _ZOOMS[motion])
    return Trajectory(position, scale, angle, view_centre, view_width)
