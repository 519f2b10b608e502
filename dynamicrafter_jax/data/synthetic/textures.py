"""Draws backgrounds: square pictures that look the same at every size."""

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw, ImageFilter

from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.photographs import photograph

Palette = Float64[np.ndarray, "3 3"]
"""Three colours, 0 to 255."""


def jittered(dice: Dice, colour: tuple[int, int, int]) -> Float64[np.ndarray, "3"]:
    """Returns a colour close to the given one, 0 to 255."""
    return np.clip(np.asarray(colour) + 36 * (dice.array(3) - 0.5), 0, 255)


def draw_palette(dice: Dice, colour: tuple[int, int, int]) -> Palette:
    """Draws colours around a given one: itself, a clearly darker or lighter one, and another."""
    first = jittered(dice, colour)
    to = 255.0 * (first.mean() < 128)
    second = first + dice.uniform(0.4, 0.65) * (to - first)
    third = first + dice.uniform(0.5, 0.8) * (255 * dice.array(3) - first)
    return np.stack([first, second, third])


def draw_texture(dice: Dice, texture: str, palette: Palette, size: int) -> Image.Image:
    """Draws a generated background.

    Args:
        dice: Source of the random details, which do not depend on the size.
        texture: One of `scenes.TEXTURES`.
        palette: Its colours.
        size: Side of the picture, in pixels.
    """
    return {"noise": _noise, "blobs": _blobs, "stripes": _stripes, "leaves": _leaves}[texture](
        dice, palette, size
    )


def crop_photograph(dice: Dice, name: str, widths: float, size: int) -> Image.Image:
    """Draws a crop of a photograph, mirrored at its edges where it is larger.

    Args:
        dice: Source of the crop's random position, scale and colours.
        name: Name of the photograph.
        widths: Side of the crop, in frame widths.
        size: Side of the crop, in pixels.
    """
    source = photograph(name)
    short = min(source.shape[:2])
    # The short side spans 1.1 to 4 frame widths, so that few or many details are seen.
    width = widths * short / float(np.exp(dice.uniform(np.log(1.1), np.log(4.0))))
    corner = [dice.uniform(-0.5, 0.5) * abs(side - width) + (side - width) / 2
              for side in source.shape[:2]]  # fmt: skip
    top, left = (int(np.floor(place)) for place in corner)
    count = int(np.ceil(width)) + 1
    rows, columns = (
        _mirrored(np.arange(first, first + count), side)
        for first, side in zip((top, left), source.shape[:2], strict=True)
    )
    if dice.chance(0.5):
        columns = columns[::-1]
    box = (0, 0, width, width)
    crop = Image.fromarray(source[rows[:, None], columns])
    crop = crop.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return Image.fromarray(_recoloured(dice, np.asarray(crop)))


def _mirrored(places: np.ndarray, length: int) -> np.ndarray:
    """Reflects indices that are out of range back into it, as a mirror at each end does."""
    folded = places % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def _recoloured(dice: Dice, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Changes brightness, contrast, tint and hue a little."""
    angle = np.radians(dice.uniform(-18, 18))
    # Turns colours about the axis of the greys (Rodrigues' formula).
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    gains = 0.8 + 0.35 * dice.array(3)
    contrast, brightness = dice.uniform(0.65, 1.05), dice.uniform(-20, 20)
    matrix = (contrast * gains[:, None] * turn).astype(np.float32)
    offset = ((1 - contrast) * 120 + brightness) * gains
    values = picture.astype(np.float32) @ matrix.T + offset.astype(np.float32)
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _field(dice: Dice, cells: int, size: int) -> Float64[np.ndarray, "size size"]:
    """Draws smooth noise of about 0 to 1 from a grid of `cells` by `cells` random values."""
    grid = Image.fromarray(dice.array(cells, cells).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _mix(palette: Palette, *weights: Float64[np.ndarray, "size size"]) -> Image.Image:
    """Blends from the first colour towards each further one, by a weight at each pixel."""
    values = np.broadcast_to(palette[0], (*weights[0].shape, 3))
    for colour, weight in zip(palette[1:], weights, strict=False):
        values = values + np.clip(weight, 0, 1)[..., None] * (colour - values)
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def _noise(dice: Dice, palette: Palette, size: int) -> Image.Image:
    cells = 6 + int(dice.uniform(0, 6))
    first, second = _field(dice, cells, size), _field(dice, 2 * cells, size)
    return _mix(palette, 2.2 * (0.7 * first + 0.3 * second) - 0.6, 2 * _field(dice, 6, size) - 0.9)


def _blobs(dice: Dice, palette: Palette, size: int) -> Image.Image:
    """Draws soft blobs on a gradient."""
    axis = (np.arange(size) + 0.5) / size
    angle = dice.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (axis - 0.5) + np.sin(angle) * (axis[:, None] - 0.5)
    blobs = np.zeros((size, size))
    for x, y, r in dice.array(16, 3):
        radius = 0.04 + 0.06 * r
        blobs += np.exp(-((axis[:, None] - y) ** 2) / (2 * radius**2)) * np.exp(
            -((axis - x) ** 2) / (2 * radius**2)
        )
    return _mix(palette[[0, 2, 1]], 0.5 + 0.6 * slope, blobs)


def _stripes(dice: Dice, palette: Palette, size: int) -> Image.Image:
    """Draws broad soft stripes, bent and shaded so that moving along them shows."""
    axis = (np.arange(size) + 0.5) / size
    angle, count = dice.uniform(0, 2 * np.pi), dice.uniform(5, 9)
    along = np.cos(angle) * axis + np.sin(angle) * axis[:, None]
    wave = np.sin(2 * np.pi * (count * along + 0.7 * _field(dice, 7, size)))
    return _mix(palette, 0.5 + 0.8 * wave, 2 * _field(dice, 9, size) - 0.9)


def _leaves(dice: Dice, palette: Palette, size: int) -> Image.Image:
    """Draws overlapping discs with soft edges, as in the "dead leaves" model of pictures."""
    picture = Image.new("RGB", (size, size), _rgb(palette[0]))
    draw = ImageDraw.Draw(picture)
    for x, y, r, a, b, shade in dice.array(70, 6):
        radius = 0.03 + 0.09 * r**2
        colour = palette[0] + a * (palette[1] - palette[0])
        colour = (colour + 0.6 * b * (palette[2] - colour)) * (0.8 + 0.35 * shade)
        box = [(x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size]
        draw.ellipse(box, fill=_rgb(colour))
    return picture.filter(ImageFilter.GaussianBlur(0.004 * size))


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour + 0.5, 0, 255).astype(int).tolist()
    return red, green, blue
