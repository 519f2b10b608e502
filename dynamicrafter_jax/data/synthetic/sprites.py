"""Draws sprites."""

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw

from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.shapes import outline
from dynamicrafter_jax.data.synthetic.textures import crop_photograph

REACH = 1.08
"""Half the side of a sprite's picture, in radii of the circle around it; the margin is clear."""

_FINER = 3  # pixels drawn per pixel that is kept, in each direction
_LINE = 0.09  # width of the line around a sprite, as a share of the radius
_DARK, _LIGHT = (24, 24, 28), (246, 246, 242)

Colour = Float64[np.ndarray, "3"]


def draw_sprite(
    dice: Dice,
    shape: str,
    pattern: str,
    colours: tuple[Colour, Colour],
    photograph: str,
    behind: Colour,
    size: int,
) -> Image.Image:
    """Draws a sprite, at angle 0, in the middle of a picture.

    Args:
        dice: Source of the random details, which do not depend on the size.
        shape: One of `scenes.SHAPES`.
        pattern: One of `scenes.PATTERNS`.
        colours: The two colours of the pattern.
        photograph: The name of the photograph that fills it, if that is its pattern.
        behind: The colour of the background, with which the line around it contrasts.
        size: Side of the picture in pixels; it ends `REACH` radii from the middle.

    Returns:
        A picture of Pillow's mode RGBa: colours are multiplied by alpha.
    """
    big = _FINER * size
    corners = [tuple(corner) for corner in ((outline(shape) / REACH + 1) * big / 2).tolist()]
    mask = Image.new("L", (big, big))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    picture = _fill(dice, pattern, colours, photograph, big)
    line = _DARK if behind @ (0.3, 0.59, 0.11) > 128 else _LIGHT
    # Its outer half is cut off by the mask.
    width = round(_LINE / REACH * big)
    ImageDraw.Draw(picture).line([*corners, *corners[:2]], line, width, joint="curve")
    picture.putalpha(mask)
    return picture.convert("RGBa").reduce(_FINER)


def _fill(
    dice: Dice, pattern: str, colours: tuple[Colour, Colour], photograph: str, size: int
) -> Image.Image:
    """Draws a pattern over a whole square."""
    first, second = (tuple(colour.astype(int).tolist()) for colour in colours)
    if pattern == "photograph":
        crop = crop_photograph(dice, photograph, 0.9, size // _FINER)
        return crop.resize((size, size), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (size, size), first)
    draw = ImageDraw.Draw(picture)
    middle = size / 2
    if pattern == "halves":
        draw.rectangle((0, 0, middle, size), fill=second)
    elif pattern == "quarters":
        draw.rectangle((0, 0, middle, middle), fill=second)
        draw.rectangle((middle, middle, size, size), fill=second)
    elif pattern == "stripes":
        pitch = size / dice.uniform(3.4, 4.6)
        start = dice.uniform(-1, 0) * pitch
        for left in np.arange(start, size, pitch).tolist():
            draw.rectangle((left, 0, left + pitch / 2, size), fill=second)
    else:
        # One dot at a random place in each cell of a grid, which makes turning visible.
        cell = size / 4
        for place, (right, down, r) in enumerate(dice.array(16, 3).tolist()):
            x, y = (place % 4 + 0.3 + 0.4 * right) * cell, (place // 4 + 0.3 + 0.4 * down) * cell
            radius = (0.2 + 0.16 * r) * cell
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), second)
    return picture
