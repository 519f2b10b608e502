"""Scales and turns pictures and latents in the same way (EQ-VAE, arXiv 2502.09509, section 3).

A picture that is scaled down leaves space around it. Sizes are static under `jit`, so the space is
filled with mirror images, which norms and attention treat as more of the picture, and `inside`
returns which pixels count for the loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

LEAST_SCALE = 0.25
"""The smallest scale of a side, as in the paper."""

_MARGIN = (1 / LEAST_SCALE - 1) / 2  # how much shows at each side at the smallest scale, in sides


class Move(NamedTuple):
    """A transformation of a picture.

    Attributes:
        scale: Factors on height and width, at most 1, about the middle.
        turns: Quarter turns, anticlockwise, before scaling; half turns if the picture is not
            square.
    """

    scale: Float32[Array, "2"]
    turns: Int32[Array, ""]


def draw_move(key: Key[Array, ""], share: float) -> Move:
    """Draws a move, with independent scales; with probability 1 - `share` it is the identity."""
    for_whether, for_scale, for_turns = jax.random.split(key, 3)
    moves = jax.random.bernoulli(for_whether, share)
    scale = jax.random.uniform(for_scale, (2,), minval=LEAST_SCALE)
    turns = jax.random.randint(for_turns, (), 0, 4)
    return Move(jnp.where(moves, scale, 1.0), jnp.where(moves, turns, 0))


def moved(frames: Float[Array, "t h w c"], move: Move) -> Float[Array, "t h w c"]:
    """Turns frames and scales them down in place, with mirror images around them."""
    t, h, w, c = frames.shape
    angles = range(4) if h == w else range(0, 4, 2)
    ways = [lambda x, angle=angle: jnp.rot90(x, angle, (1, 2)) for angle in angles]
    frames = jax.lax.switch(move.turns % len(ways), ways, frames)
    margins = [round(_MARGIN * side) for side in (h, w)]
    padding = [(0, 0), *((margin, margin) for margin in margins), (0, 0)]
    sides = jnp.asarray([h, w], jnp.float32)
    middle = sides / 2 + jnp.asarray(margins, jnp.float32)
    return jax.image.scale_and_translate(
        jnp.pad(frames, padding, "symmetric"),
        (t, h, w, c),
        (1, 2),
        move.scale,
        sides / 2 - move.scale * middle,
        "linear",
    )


def inside(move: Move, height: int, width: int) -> Bool[Array, "height width"]:
    """Returns which pixels of a moved picture belong to the picture itself."""
    rows, columns = (
        jnp.abs(jnp.arange(side, dtype=jnp.float32) + (0.5 - side / 2)) < scale * side / 2
        for side, scale in zip((height, width), move.scale, strict=True)
    )
    return rows[:, None] & columns[None]
