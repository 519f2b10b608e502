"""Outlines of sprites."""

import numpy as np
from jaxtyping import Float64

Outline = Float64[np.ndarray, "n 2"]

_ARC = 48  # points on an arc


def outline(shape: str) -> Outline:
    """Returns the corners (x, y) of a shape, y down.

    The centroid of its area is at 0, and the farthest corner is at distance 1. So a sprite's
    position is the middle of what is seen of it.

    Args:
        shape: One of `scenes.SHAPES`.
    """
    corners = _CORNERS[shape]()
    corners = corners - _middle(corners)
    return corners / np.linalg.norm(corners, axis=1).max()


def _middle(corners: Outline) -> Float64[np.ndarray, "2"]:
    """Returns the centroid of a polygon's area, summed over the triangles from the origin."""
    after = np.roll(corners, -1, axis=0)
    cross = corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]
    return ((corners + after) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def _arc(start: float, stop: float, radius: float = 1.0) -> Outline:
    """Returns points on a circle, between angles in degrees."""
    angle = np.radians(np.linspace(start, stop, _ARC))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _regular(corners: int) -> Outline:
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star() -> Outline:
    radius = np.where(np.arange(10) % 2, 0.48, 1.0)
    return _regular(10) * radius[:, None]


def _heart() -> Outline:
    angle = np.linspace(0, 2 * np.pi, 2 * _ARC, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y], axis=1)


def _cross() -> Outline:
    a, b = 1.0, 0.38
    return np.array(
        [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b),
         (-a, -b), (-b, -b)]
    )  # fmt: skip


def _ring() -> Outline:
    """Returns a thick ring with a notch, which makes turning visible."""
    return np.concatenate([_arc(-65.0, 245.0), _arc(245.0, -65.0, radius=0.4)])


_CORNERS = {
    "ball": lambda: _regular(2 * _ARC),
    "square": lambda: np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": lambda: _regular(3),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "half-moon": lambda: _arc(0.0, 180.0),
}
