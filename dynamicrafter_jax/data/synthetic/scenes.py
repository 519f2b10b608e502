"""Scenes: what a clip shows, drawn from its number."""

import math
from dataclasses import dataclass, replace

import numpy as np

from dynamicrafter_jax.data.synthetic import captions
from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.motion import (
    CAMERA_MOTIONS,
    MOTIONS,
    OBJECT_MOTIONS,
    TRANSLATIONS,
    Motion,
    Pose,
    Trajectory,
    trajectory_from,
)
from dynamicrafter_jax.data.synthetic.photographs import PHOTOGRAPHS, Split
from dynamicrafter_jax.errors import UserError

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 90, 210),
    "yellow": (245, 210, 50),
    "orange": (240, 135, 30),
    "purple": (130, 60, 170),
    "pink": (245, 130, 180),
    "cyan": (60, 200, 215),
    "white": (238, 238, 238),
    "black": (28, 28, 30),
}
"""Red, green and blue, 0 to 255, of the named colours."""

SHAPES = ("ball", "square", "triangle", "star", "heart", "cross", "ring", "half-moon")
PATTERNS = ("stripes", "halves", "dots", "quarters", "photograph")
TEXTURES = ("noise", "blobs", "stripes", "leaves")

MIN_FPS, MAX_FPS = 6, 24
_CONTRAST = 170  # between the two colours of a sprite; the largest possible is 442
_TURNS = OBJECT_MOTIONS[4:6]
_SCALES = OBJECT_MOTIONS[6:]


@dataclass(frozen=True)
class Sprite:
    """The object of a scene, as it is in the first frame.

    Attributes:
        shape: One of `SHAPES`.
        pattern: One of `PATTERNS`: what fills it. With each of them, turning is visible.
        colours: The names of the two colours of its pattern.
        photograph: The name of the photograph that fills it, if its pattern is "photograph".
        diameter: Diameter of the circle around it, in frame widths.
        position: The centroid (x, y) of its area.
        angle: Its angle, in degrees.
    """

    shape: str
    pattern: str
    colours: tuple[str, str]
    photograph: str
    diameter: float
    position: tuple[float, float]
    angle: float


@dataclass(frozen=True)
class Background:
    """The background of a scene.

    Attributes:
        texture: One of `TEXTURES`, or "photograph".
        colour: The name of its main colour; meaningless if it is a photograph.
        photograph: The name of the photograph, if it is one.
    """

    texture: str
    colour: str
    photograph: str


@dataclass(frozen=True)
class Scene:
    """The content of a clip, as `draw_scene` draws it.

    Attributes:
        number: The number it was drawn from.
        split: The split it was drawn from.
        motions: What happens: nothing, one motion, or two at once.
        fps: Frames a second, which sets how far things move from frame to frame.
        jitter: A factor on all rates, near 1.
        sprite: The object; None if there is only the background.
        background: The background.
        caption: What happens, in words. It never mentions the speed.
    """

    number: int
    split: Split
    motions: tuple[Motion, ...]
    fps: int
    jitter: float
    sprite: Sprite | None
    background: Background
    caption: str = ""


def draw_scene(
    number: int,
    split: Split = "train",
    *,
    motions: tuple[Motion, ...] | None = None,
    fps: int | None = None,
) -> Scene:
    """Draws a clip from its number; the splits are unrelated, and share no photographs.

    The first frame is drawn independently of the motions, with one exception: only a scene in which
    no object moves can be without an object.

    Args:
        number: Number of the clip, 0 to 2**64 - 1.
        split: Split of the clip.
        motions: Replaces the motions that would be drawn; everything else stays, except that the
            caption describes these. An object is added if one is needed.
        fps: Replaces the frames a second that would be drawn.

    Raises:
        UserError: A number is out of range.
    """
    if not 0 <= number < 2**64:
        raise UserError(f"clip {number} can't be drawn: give a number from 0 to 2**64 - 1")
    if fps is not None and fps < 1:
        raise UserError(f"fps is {fps}: give 1 or more")

    def dice(topic: str) -> Dice:
        return Dice(number, f"{split} {topic}")

    drawn = _draw_motions(dice("motions"))
    speed = dice("speed")
    drawn_fps = int(MIN_FPS * ((MAX_FPS + 1) / MIN_FPS) ** speed.uniform(0, 1))
    alone = dice("presence").chance(0.5) and not set(drawn) & set(OBJECT_MOTIONS)
    motions = drawn if motions is None else tuple(motions)
    if set(motions) & set(OBJECT_MOTIONS):
        alone = False
    sprite = _draw_sprite(dice("sprite"), split)
    scene = Scene(
        number=number,
        split=split,
        motions=motions,
        fps=drawn_fps if fps is None else fps,
        jitter=speed.uniform(0.9, 1.1),
        sprite=None if alone else sprite,
        background=_draw_background(dice("background"), split, sprite.colours),
    )
    return replace(scene, caption=_caption(dice("caption"), scene))


def trajectory(scene: Scene, num_frames: int) -> Trajectory:
    """Returns where everything is in each frame; frame i is at i / fps seconds.

    For a scene without a sprite, the sprite's position is the middle.
    """
    start = Pose(
        position=np.asarray(scene.sprite.position if scene.sprite else (0.5, 0.5)),
        scale=1.0,
        angle=scene.sprite.angle if scene.sprite else 0.0,
        view_centre=np.array([0.5, 0.5]),
        view_width=1.0,
    )
    return trajectory_from(start, scene.motions, scene.jitter, np.arange(num_frames) / scene.fps)


def _draw_motions(dice: Dice) -> tuple[Motion, ...]:
    kind = dice.uniform(0, 1)
    if kind < 0.1:
        return ()
    if kind < 0.85:
        return (dice.choose(MOTIONS),)
    first = dice.choose(TRANSLATIONS if dice.chance(0.5) else CAMERA_MOTIONS)
    if first in TRANSLATIONS:
        return first, dice.choose(_TURNS + _SCALES)
    return first, dice.choose(dice.choose((_TURNS, _SCALES, TRANSLATIONS)))


def _draw_sprite(dice: Dice, split: Split) -> Sprite:
    colour = dice.choose(tuple(COLOURS))
    other = dice.choose([name for name in COLOURS if _distance(name, colour) > _CONTRAST])
    return Sprite(
        shape=dice.choose(SHAPES),
        pattern=dice.choose(PATTERNS),
        colours=(colour, other),
        photograph=dice.choose(PHOTOGRAPHS[split]),
        diameter=dice.uniform(0.40, 0.55),
        position=(dice.uniform(0.38, 0.62), dice.uniform(0.38, 0.62)),
        angle=dice.uniform(0, 360),
    )


def _draw_background(dice: Dice, split: Split, taken: tuple[str, str]) -> Background:
    return Background(
        texture="photograph" if dice.chance(0.5) else dice.choose(TEXTURES),
        colour=dice.choose([name for name in COLOURS if name not in taken]),
        photograph=dice.choose(PHOTOGRAPHS[split]),
    )


def _distance(name: str, other: str) -> float:
    return math.dist(COLOURS[name], COLOURS[other])


def _caption(dice: Dice, scene: Scene) -> str:
    sprite, background = scene.sprite, scene.background
    behind = "" if background.texture == "photograph" else background.colour
    noun = None
    if sprite:
        noun = captions.Noun(
            sprite.shape, sprite.pattern, () if sprite.pattern == "photograph" else sprite.colours
        )
    return captions.write(dice, scene.motions, noun, behind)
