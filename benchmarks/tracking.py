"""Finds what moves in a video of a drawn scene, by drawing the scene again.

The scene is known, so a pose explains a frame if the scene drawn in that pose looks like the frame.
The caption is not used, so a generated video can be compared with its caption.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from dynamicrafter_jax.data.synthetic.motion import (
    CAMERA_MOTIONS,
    GROWTH,
    OBJECT_MOTIONS,
    PAN,
    TRANSLATION,
    TURN,
    ZOOM,
    Motion,
    Pose,
)
from dynamicrafter_jax.data.synthetic.rendering import Renderer
from dynamicrafter_jax.data.synthetic.scenes import Scene, trajectory

_Array = Float64[np.ndarray, "7"]


class Change(NamedTuple):
    """What has changed since the first frame, in seconds of motion at the nominal rate.

    Attributes:
        right: How far the object has moved to the right; negative if to the left.
        down: How far down.
        clockwise: How far it has turned.
        grown: How much it has grown.
        pan_right: How far the camera has moved to the right.
        pan_down: How far down.
        zoomed_in: How far it has zoomed in.
    """

    right: float = 0.0
    down: float = 0.0
    clockwise: float = 0.0
    grown: float = 0.0
    pan_right: float = 0.0
    pan_down: float = 0.0
    zoomed_in: float = 0.0


# Which of the changes each motion is, and its sign.
_PARTS: dict[Motion, tuple[int, int]] = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 1),
    "up": (1, -1),
    "clockwise": (2, 1),
    "anticlockwise": (2, -1),
    "grow": (3, 1),
    "shrink": (3, -1),
    "pan_right": (4, 1),
    "pan_left": (4, -1),
    "pan_down": (5, 1),
    "pan_up": (5, -1),
    "zoom_in": (6, 1),
    "zoom_out": (6, -1),
}
_GUESSES = (0.3, 0.7, 1.1, 1.6, 2.1, 2.6)  # seconds, to start the search from
_STEPS = (0.2, 0.1, 0.05, 0.02)
_LIKELY = 4  # guesses that are followed up
_OUTLIER = 40.0**2  # squared levels of 255: so much counts a pixel that shows something else
_SHARES = (0.4, 1.0)  # of a clip's time: where it is looked at


def find_change(scene: Scene, video: UInt8[np.ndarray, "t h w 3"]) -> Change:
    """Returns what has changed in the last frame of a video.

    A change is judged by how well it explains the last frame and, with a part of it, an earlier
    one. This distinguishes half a turn from half a turn the other way.

    The camera's motion is found first, with an error in which the object's pixels count for little;
    then the object's, for a static camera and for the likely camera motions. Every single motion is
    tried at several speeds, and then every further motion in addition to the best; likely changes
    are improved along each axis until nothing helps, and finally along all axes together.

    Args:
        scene: What the first frame shows.
        video: At least two frames.
    """
    error = _Error(scene, video)
    camera, object_ = CAMERA_MOTIONS, OBJECT_MOTIONS if scene.sprite else ()
    still = np.zeros(len(Change._fields))
    likely = _likeliest(_further(still, camera), error.robust)
    cameras = [still, *(_improve(guess, camera, error.robust) for guess in likely)]
    likely = sorted(cameras, key=error.robust)[:_LIKELY]
    if object_:
        likely = [_with_object(start, object_, error) for start in (still, likely[0])]
    improved = [_improve(one, camera + object_, error) for one in likely]
    return Change(*min(improved, key=error).tolist())


def _with_object(
    start: _Array, motions: Sequence[Motion], error: Callable[[_Array], float]
) -> _Array:
    """Returns a camera's change, completed by that of the object."""
    guesses = [start, *_likeliest(_further(start, motions), error)]
    both = [two for one in guesses[1:] for two in _further(one, motions)]
    likely = sorted(guesses + both, key=error)[:_LIKELY]
    return min((_improve(one, motions, error) for one in likely), key=error)


def _likeliest(guesses: Sequence[_Array], error: Callable[[_Array], float]) -> list[_Array]:
    """Returns the best guesses, one for each axis and direction of the motion added last."""
    found: dict[tuple[float, ...], _Array] = {}
    for guess in sorted(guesses, key=error):
        found.setdefault(tuple(np.sign(guess)), guess)
    return list(found.values())[:_LIKELY]


class _Error:
    """The error of a video against what the scene would show in the course of a change."""

    def __init__(self, scene: Scene, video: UInt8[np.ndarray, "t h w 3"]) -> None:
        self._start = trajectory(scene, 1).pose(0)
        self._renderer = Renderer(scene, *video.shape[1:3])
        last = len(video) - 1
        numbers = sorted({max(1, round(share * last)) for share in _SHARES})
        self._wanted = video[numbers].astype(np.float32)
        self._shares = [number / last for number in numbers]
        self._seen: dict[tuple[float, ...], tuple[float, float]] = {}
        self._backgrounds: dict[tuple[float, ...], UInt8[np.ndarray, "h w 3"]] = {}

    def __call__(self, change: _Array) -> float:
        return self._errors(change)[0]

    def robust(self, change: _Array) -> float:
        """Returns the same error, with each pixel's part limited to that of an outlier."""
        return self._errors(change)[1]

    def _errors(self, change: _Array) -> tuple[float, float]:
        key = tuple(np.round(change, 4).tolist())
        if key not in self._seen:
            drawn = np.stack([self._draw(Change(*(s * x for x in key))) for s in self._shares])
            off = drawn - self._wanted
            squares = np.einsum("thwc,thwc->thw", off, off) / off.shape[-1]
            self._seen[key] = float(squares.mean()), float(np.minimum(squares, _OUTLIER).mean())
        return self._seen[key]

    def _draw(self, change: Change) -> UInt8[np.ndarray, "h w 3"]:
        pose = pose_after(self._start, change)
        camera = change.pan_right, change.pan_down, change.zoomed_in
        if camera not in self._backgrounds:
            self._backgrounds[camera] = self._renderer.background(pose)
        return self._renderer.with_sprite(self._backgrounds[camera], pose)


def _further(change: _Array, motions: Sequence[Motion]) -> list[_Array]:
    """Returns the change with one more motion: each that it lacks, at several speeds."""
    steps = np.eye(len(change))
    return [
        change + sign * guess * steps[part]
        for part, sign in (_PARTS[motion] for motion in motions)
        if change[part] == 0
        for guess in _GUESSES
    ]


def _improve(best: _Array, motions: Sequence[Motion], error: Callable[[_Array], float]) -> _Array:
    """Moves along the axes of some motions, in ever smaller steps, as long as that helps."""
    axes = sorted({_PARTS[motion][0] for motion in motions})
    for step in _STEPS:
        improved = True
        while improved:
            around = [
                best + way * step * np.eye(len(best))[axis] for axis in axes for way in (1, -1)
            ]
            nearest = min(around, key=error)
            improved = error(nearest) < error(best)
            best = nearest if improved else best
    return best


def pose_after(start: Pose, change: Change) -> Pose:
    """Returns the pose that a change leads to."""
    return Pose(
        position=start.position + TRANSLATION * np.array([change.right, change.down]),
        scale=start.scale * float(np.exp(GROWTH * change.grown)),
        angle=start.angle + TURN * change.clockwise,
        view_centre=start.view_centre + PAN * np.array([change.pan_right, change.pan_down]),
        view_width=start.view_width * float(np.exp(-ZOOM * change.zoomed_in)),
    )


def shows(change: Change, motions: tuple[Motion, ...], seconds: float, *, share: float) -> bool:
    """Returns whether a change shows some motions, and no others.

    Args:
        change: See `find_change`.
        motions: The motions that should have happened.
        seconds: How long they should have lasted.
        share: Share of a motion's distance at the nominal rate in that time: these motions must go
            at least that far, in the right direction, and all others less far.
    """
    named = {_PARTS[motion][0]: _PARTS[motion][1] for motion in motions}
    limit = share * seconds
    return all(
        way * named[part] >= limit if part in named else abs(way) < limit
        for part, way in enumerate(change)
    )


def made(change: Change, motion: Motion) -> float:
    """Returns the seconds that a motion has lasted; negative in the other direction."""
    part, sign = _PARTS[motion]
    return sign * change[part]
