"""Captions that say what happens in a clip."""

from collections.abc import Sequence
from typing import NamedTuple

from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.motion import CAMERA_MOTIONS, CameraMotion, Motion

VERBS: dict[Motion, tuple[str, ...]] = {
    "left": (
        "moves left", "moves to the left", "drifts left", "slides to the left", "goes left",
        "glides left", "is moving left", "travels to the left", "drifts leftwards",
    ),
    "right": (
        "moves right", "moves to the right", "drifts right", "slides to the right", "goes right",
        "glides right", "is moving right", "travels to the right", "drifts rightwards",
    ),
    "up": (
        "moves up", "rises", "goes up", "drifts up", "floats upwards", "is moving up", "ascends",
        "climbs", "moves upwards",
    ),
    "down": (
        "moves down", "falls", "goes down", "drifts down", "sinks", "is moving down", "descends",
        "drops", "moves downwards",
    ),
    "clockwise": (
        "turns clockwise", "rotates clockwise", "spins clockwise", "is turning clockwise",
        "is rotating clockwise", "revolves clockwise",
    ),
    "anticlockwise": (
        "turns anticlockwise", "turns counterclockwise", "rotates anticlockwise",
        "rotates counterclockwise", "spins counterclockwise", "spins anticlockwise",
        "is turning counter-clockwise", "is rotating counterclockwise",
    ),
    "grow": (
        "grows", "gets bigger", "becomes larger", "grows larger", "expands", "is growing",
        "gets larger", "becomes bigger", "increases in size",
    ),
    "shrink": (
        "shrinks", "gets smaller", "becomes smaller", "is shrinking", "contracts",
        "shrinks in size", "is getting smaller", "decreases in size",
    ),
}  # fmt: skip
"""Verbs for what an object does, by its motion."""

CAMERA_CLAUSES: dict[CameraMotion, tuple[str, ...]] = {
    "pan_left": (
        "the camera pans left", "the camera pans to the left", "the camera moves left",
        "the camera is panning left", "camera panning to the left",
    ),
    "pan_right": (
        "the camera pans right", "the camera pans to the right", "the camera moves right",
        "the camera is panning right", "camera panning to the right",
    ),
    "pan_up": (
        "the camera pans up", "the camera moves up", "the camera pans upwards",
        "the camera is panning up", "camera panning up",
    ),
    "pan_down": (
        "the camera pans down", "the camera moves down", "the camera pans downwards",
        "the camera is panning down", "camera panning down",
    ),
    "zoom_in": (
        "the camera zooms in", "the camera moves closer", "the camera is zooming in",
        "camera zooming in", "the camera moves in",
    ),
    "zoom_out": (
        "the camera zooms out", "the camera moves back", "the camera is zooming out",
        "camera zooming out", "the camera pulls back",
    ),
}  # fmt: skip
"""Clauses for what the camera does."""

CAMERA_WORDS: dict[CameraMotion, tuple[str, ...]] = {
    "pan_left": ("panning left", "pan left", "camera pan to the left"),
    "pan_right": ("panning right", "pan right", "camera pan to the right"),
    "pan_up": ("panning up", "pan up", "camera pan upwards"),
    "pan_down": ("panning down", "pan down", "camera pan downwards"),
    "zoom_in": ("zooming in", "zoom in", "camera zoom in"),
    "zoom_out": ("zooming out", "zoom out", "camera zoom out"),
}
"""The same as phrases without a finite verb, to stand alone or after a comma."""

REST = (
    "stays still", "does not move", "is still", "stays where it is", "rests", "remains still",
)  # fmt: skip
"""Verbs for an object that does not move."""

STILL = (
    "nothing moves", "nothing happens", "no motion", "everything stays still", "a still picture",
)  # fmt: skip
"""Captions of a clip in which nothing moves."""

_PATTERNED = {
    "stripes": ("striped {0} {s}", "{0} {s} with {1} stripes", "{0} and {1} striped {s}"),
    "halves": ("{0} and {1} {s}", "half {0}, half {1} {s}", "two-coloured {0} {s}"),
    "dots": ("dotted {0} {s}", "{0} {s} with {1} dots", "spotted {0} {s}"),
    "quarters": ("chequered {0} {s}", "{0} and {1} {s}", "checkered {0} and {1} {s}"),
    "photograph": ("{s} with a picture on it", "patterned {s}", "{s} cut out of a photograph"),
}
_SYNONYMS = {
    "ball": ("ball", "disc", "circle"),
    "cross": ("cross", "plus sign"),
    "half-moon": ("half-moon", "half circle"),
}
_GENERIC = ("the object", "something", "the shape", "the thing", "it", "an object", "a shape")

WORDS = (
    "rocket", "cup", "cat", "car", "dog", "face", "tree", "bird", "boat", "ship", "house",
    "flower", "fish", "horse", "bear", "cow", "sheep", "lion", "tiger", "elephant", "monkey",
    "rabbit", "mouse", "frog", "snake", "turtle", "duck", "chicken", "eagle", "owl", "butterfly",
    "bee", "spider", "whale", "shark", "dolphin", "penguin", "robot", "man", "woman", "child",
    "boy", "girl", "person", "dancer", "soldier", "king", "queen", "doctor", "hand", "head",
    "eye", "train", "bus", "truck", "bicycle", "plane", "balloon", "helicopter", "kite",
    "satellite", "planet", "moon", "sun", "cloud", "mountain", "rock", "stone", "river", "lake",
    "wave", "sea", "beach", "island", "forest", "field", "garden", "leaf", "road", "bridge",
    "tower", "castle", "church", "temple", "building", "city", "street", "window", "door",
    "wall", "room", "table", "chair", "bed", "lamp", "candle", "clock", "mirror", "book", "pen",
    "paper", "letter", "picture", "box", "bag", "bottle", "glass", "bowl", "plate", "spoon",
    "knife", "coffee", "bread", "cake", "apple", "orange", "banana", "lemon", "pizza", "egg",
    "hat", "shirt", "shoe", "coat", "ring", "crown", "key", "coin", "flag", "drum", "guitar",
    "piano", "phone", "violin", "computer", "screen", "wheel", "engine", "machine", "hammer",
    "sword", "arrow", "toy", "doll", "statue", "ghost", "dragon", "monster", "snowman",
    "astronaut", "landscape", "portrait", "scene",
)  # fmt: skip
"""Nouns used for any object, so that a model learns not to depend on the noun."""


class Noun(NamedTuple):
    """The properties that an object can be named by.

    Attributes:
        shape: The name of its shape.
        pattern: The name of the pattern that fills it.
        colours: The names of the pattern's two colours; empty if they have no names.
    """

    shape: str
    pattern: str
    colours: Sequence[str]


def write(dice: Dice, motions: Sequence[Motion], noun: Noun | None, background: str) -> str:
    """Returns a caption that says what happens in a clip, in randomly chosen words.

    Args:
        dice: Source of the random choices.
        motions: Everything that happens.
        noun: The properties of the object, if there is one.
        background: The name of the background's colour, or "" for a photograph.
    """
    camera: list[CameraMotion] = [motion for motion in CAMERA_MOTIONS if motion in motions]
    verbs = [dice.choose(VERBS[motion]) for motion in motions if motion in VERBS]
    if verbs:
        text = _object_moves(dice, _name(dice, noun), verbs, camera)
        text += _behind(dice, background)
    elif camera:
        text = _camera_moves(dice, noun, camera[0], background)
    else:
        text = _nothing_moves(dice, noun, background)
    if dice.chance(0.25):
        text = text[0].upper() + text[1:]
    return text + "." if dice.chance(0.25) else text


def _object_moves(dice: Dice, name: str, verbs: list[str], camera: list[CameraMotion]) -> str:
    if len(verbs) == 2:
        if dice.chance(0.5):
            verbs = verbs[::-1]
        link = dice.choose((" and ", " while it ", " and it ", " as it ", ", and "))
        return f"{name} {link.join(verbs)}"
    clause = f"{name} {verbs[0]}"
    if not camera:
        return clause
    if dice.chance(0.25):
        return f"{clause}, {dice.choose(CAMERA_WORDS[camera[0]])}"
    moving = dice.choose(CAMERA_CLAUSES[camera[0]])
    if dice.chance(0.5):
        clause, moving = moving, clause
    return clause + dice.choose((" while ", " and ", ", ", " as ")) + moving


def _camera_moves(dice: Dice, noun: Noun | None, motion: CameraMotion, background: str) -> str:
    clause = dice.choose(CAMERA_CLAUSES[motion])
    form = dice.uniform(0, 1)
    if form < 0.3:
        return clause
    if form < 0.4:
        return dice.choose(CAMERA_WORDS[motion])
    seen = _seen(dice, noun, background)
    if form < 0.6:
        return f"{seen}, {clause}"
    if form < 0.75:
        return f"{seen}, {dice.choose(CAMERA_WORDS[motion])}"
    link = {"zoom_in": "on", "zoom_out": "from"}.get(motion, "over")
    return f"{clause} {link} {seen}"


def _nothing_moves(dice: Dice, noun: Noun | None, background: str) -> str:
    form = dice.uniform(0, 1)
    if form < 0.3:
        return dice.choose(STILL)
    if noun and form < 0.7:
        return f"{_name(dice, noun)} {dice.choose(REST)}{_behind(dice, background)}"
    seen = _seen(dice, noun, background)
    if form < 0.85:
        return f"{dice.choose(('a still picture of', 'a still image of'))} {seen}"
    return f"{seen}, {dice.choose(STILL[:4])}"


def _seen(dice: Dice, noun: Noun | None, background: str) -> str:
    """Names what is seen in a clip in which no object moves."""
    if dice.chance(0.3):
        return _with_article(dice, dice.choose(WORDS))
    if noun:
        return _name(dice, noun) + _behind(dice, background)
    if background:
        return f"{_indefinite(background)} background"
    return dice.choose(("a photograph", "a photo"))


def _name(dice: Dice, noun: Noun | None) -> str:
    """Names an object: in full, in part, vaguely, or as something that it isn't."""
    form = dice.uniform(0, 1)
    if form < 0.12 or noun is None:
        return _with_article(dice, dice.choose(WORDS))
    if form < 0.28:
        return dice.choose(_GENERIC)
    shape = dice.choose(_SYNONYMS.get(noun.shape, (noun.shape,)))
    if form < 0.44:
        return _with_article(dice, shape)
    if form < 0.7 and noun.colours:
        return _with_article(dice, f"{noun.colours[0]} {shape}")
    words = dice.choose(_PATTERNED[noun.pattern]).format(*noun.colours, s=shape)
    return _with_article(dice, words)


def _with_article(dice: Dice, words: str) -> str:
    return f"the {words}" if dice.chance(0.35) else _indefinite(words)


def _indefinite(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _behind(dice: Dice, background: str) -> str:
    """Names what is behind an object, in a quarter of the captions."""
    if not dice.chance(0.25):
        return ""
    if background:
        where = dice.choose(("on", "against", "over"))
        return f" {where} {_indefinite(background)} background"
    return dice.choose((" over a photograph", " in front of a photo", " on a photograph"))
