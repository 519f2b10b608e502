"""Bicubic resizing of 8-bit pictures, bit for bit as in Pillow.

Measures that read picture files are defined with it. It is a cubic convolution (a = -0.5), widened
when pictures shrink so that they do not alias, along rows and then along columns, each in fixed
point and rounded to 8 bits.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

_SUPPORT = 2.0
_FRACTION_BITS = 22


def resize(images: UInt8[Array, "b h w c"], height: int, width: int) -> UInt8[Array, "b h2 w2 c"]:
    """Resizes pictures; the aspect ratio is not kept.

    Args:
        images: Pictures of any size.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
    """
    return _resize(_resize(images, 2, width), 1, height)


def _resize(x: Array, axis: int, size: int) -> Array:
    if x.shape[axis] == size:
        return x
    index, weight = _taps(x.shape[axis], size)
    each = (-1,) + (1,) * (x.ndim - axis - 1)
    total = jnp.full((1,) * x.ndim, 2 ** (_FRACTION_BITS - 1), jnp.int32)  # a half, to round
    for i, factor in zip(index, weight, strict=True):
        factor = factor.reshape((1,) * axis + each)
        total = _add(total, jnp.take(x, i, axis).astype(jnp.int32), jnp.asarray(factor))
    return jnp.clip(total >> _FRACTION_BITS, 0, 255).astype(jnp.uint8)


def _add(total: Array, values: Array, factor: Array) -> Array:
    shape = jnp.broadcast_shapes(total.shape, values.shape)
    return jnp.broadcast_to(total, shape) + values * jnp.broadcast_to(factor, shape)


@functools.cache
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each tap and pixel of the result, the pixel read and its fixed-point weight."""
    scale = length / size
    stretch = max(scale, 1.0)
    reach = _SUPPORT * stretch
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    index = first[None] + np.arange((last - first).max())[:, None]
    weight = _cubic((index - centre[None] + 0.5) / stretch) * (index < last[None])
    fixed = weight / weight.sum(0, keepdims=True) * 2**_FRACTION_BITS
    fixed = np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)
    return np.minimum(index, length - 1).astype(np.int32), fixed


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
