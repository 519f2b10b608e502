"""Measures of videos that need no network of their own.

Two compare the pixels of a video's first frame and of the image that it was made from. One measures
motion, since a still would keep its image best. Two compare CLIP's vectors of frames and texts (see
`metrics.clip_embedding`).

Motion is measured by frame differences rather than optical flow: flow needs another network or
library, and its values depend on which one.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from dynamicrafter_jax.errors import UserError

# SSIM: side and standard deviation of the window, in pixels, and the constants K1 and K2.
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03

_PEAK = 255.0

COLUMNS = ("first_frame_psnr", "first_frame_ssim", "motion_degree")
"""The measures that `frame_measures` returns for a video."""


def frame_measures(params: PyTree, seen: UInt8[Array, "b t1 h w 3"]) -> Float[Array, "b 3"]:
    """Returns the measures in `COLUMNS`; a network for `features.Extractor`.

    Args:
        params: Unused.
        seen: For each video, the image that it was made from, followed by its frames.
    """
    del params
    image, first = seen[:, 0], seen[:, 1]
    return jnp.stack([psnr(image, first), ssim(image, first), motion_degree(seen[:, 1:])], axis=-1)


def psnr(x: UInt8[Array, "b h w 3"], y: UInt8[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Returns the peak signal-to-noise ratio in dB, infinite for equal pictures.

    The squared error is averaged over pixels and channels.
    """
    difference = x.astype(jnp.float32) - y.astype(jnp.float32)
    return 10 * jnp.log10(_PEAK**2 / jnp.square(difference).mean((1, 2, 3)))


def ssim(x: UInt8[Array, "b h w 3"], y: UInt8[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Returns the structural similarity, 1 for equal pictures (Wang et al. 2004, Eq. 13 and 17).

    The window is a Gaussian of 11x11 pixels with standard deviation 1.5, and only whole windows
    count. Channels are compared separately, and averaged.

    Raises:
        UserError: A side is shorter than the window.
    """
    _, h, w, _ = x.shape
    if min(h, w) < _WINDOW:
        raise UserError(
            f"SSIM compares windows of {_WINDOW}x{_WINDOW} pixels: pictures of {h}x{w} are too "
            "small"
        )
    rows, columns = (jnp.asarray(_window_matrix(n), jnp.float32) for n in (h, w))

    def local_mean(values: Array) -> Array:
        return jnp.einsum("yh,bhwc,xw->byxc", rows, values, columns, precision="highest")

    # Values are centred on the middle of the range: smaller squares lose less to rounding.
    middle = jnp.float32(128)
    x0, y0 = x.astype(jnp.float32) - middle, y.astype(jnp.float32) - middle
    mean_x, mean_y = local_mean(x0), local_mean(y0)
    spread = local_mean(x0 * x0 + y0 * y0) - mean_x**2 - mean_y**2
    covariance = local_mean(x0 * y0) - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (spread + c2)).mean((1, 2, 3))


def motion_degree(frames: UInt8[Array, "b t h w 3"]) -> Float[Array, " b"]:
    """Returns the mean absolute difference between neighbouring frames, 0 to 1.

    Raises:
        UserError: There is only one frame.
    """
    _check_neighbours(frames.shape[1])
    x = frames.astype(jnp.float32)
    return jnp.abs(x[:, 1:] - x[:, :-1]).mean((1, 2, 3, 4)) / _PEAK


def frame_consistency(frames: Float[Array, "b t d"]) -> Float[Array, " b"]:
    """Returns the mean cosine between neighbouring frames (arXiv 2302.03011).

    Args:
        frames: Their vectors from CLIP's vision tower.

    Raises:
        UserError: There is only one frame.
    """
    _check_neighbours(frames.shape[1])
    return _cosine(frames[:, 1:], frames[:, :-1]).mean(-1)


def _cosine(x: Array, y: Array) -> Array:
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return (x * y).sum(-1) / lengths


def _check_neighbours(frames: int) -> None:
    if frames < 2:
        raise UserError("a video of 1 frame has no neighbouring frames to compare: give 2 or more")


def _window_matrix(length: int) -> np.ndarray:
    """Returns the matrix that takes weighted means over all whole windows along one axis."""
    weight = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
    weight /= weight.sum()
    matrix = np.zeros((length - _WINDOW + 1, length))
    start = np.arange(len(matrix))[:, None]
    matrix[start, start + np.arange(_WINDOW)[None]] = weight[None]
    return matrix
