"""Fits pictures of any size to the model's size, and cuts its videos back."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from dynamicrafter_jax.errors import UserError

_MIN_SIDE = 8  # least side of a video, in pixels


class Window(NamedTuple):
    """The part of a frame that shows the picture, in pixels.

    Attributes:
        top: Rows above it.
        left: Columns to the left of it.
        height: Rows of the picture.
        width: Columns of the picture.
    """

    top: int
    left: int
    height: int
    width: int

    def cut(self, video: Shaped[np.ndarray, "*t h w 3"]) -> Shaped[np.ndarray, "*t h2 w2 3"]:
        """Cuts this part out of a frame, or out of all frames of videos."""
        rows = slice(self.top, self.top + self.height)
        return video[..., rows, self.left : self.left + self.width, :]


def cover_and_crop(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> Float32[np.ndarray, "height width 3"]:
    """Resizes and crops a picture with `cover`, and scales it to the models' range.

    Returns:
        float32 (height, width, 3), x / 127.5 - 1.
    """
    return _as_floats(cover(picture, height, width))


def letterbox(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> tuple[Float32[np.ndarray, "height width 3"], Window]:
    """Fits a whole picture into height x width, and scales it to the models' range.

    It is resized with `cover` to the size of `letterbox_window`, and centered. Its borders are
    repeated around it, since to a video model the edge of a black bar would be an object of its
    own, which moves.

    Returns:
        float32 (height, width, 3), x / 127.5 - 1, and the position of the picture in it.

    Raises:
        UserError: The picture is too long and narrow.
    """
    h, w, _ = picture.shape
    window = letterbox_window(h, w, height, width)
    resized = cover(picture, window.height, window.width)
    rows = window.top, height - window.top - window.height
    columns = window.left, width - window.left - window.width
    return _as_floats(np.pad(resized, (rows, columns, (0, 0)), mode="edge")), window


def letterbox_window(h: int, w: int, height: int, width: int) -> Window:
    """Returns where `letterbox` puts a picture of h x w pixels in a frame of height x width.

    It fills the frame in one direction. In the other, its side is the even number closest to the
    picture's aspect ratio, since videos have half as many colours as pixels in each direction.

    Raises:
        UserError: That side is under 8 pixels.
    """
    scale = min(Fraction(height, h), Fraction(width, w))
    inner_h, inner_w = (
        frame if side * scale == frame else min(2 * round(side * scale / 2), frame)
        for side, frame in ((h, height), (w, width))
    )
    if min(inner_h, inner_w) < _MIN_SIDE:
        raise UserError(
            f"a picture of {w} x {h} pixels is too narrow to be shown whole in {width} x {height}: "
            "cut it, or use the fit 'crop'"
        )
    return Window((height - inner_h) // 2, (width - inner_w) // 2, inner_h, inner_w)


def cover(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes a picture to cover height x width, and crops the center.

    The aspect ratio is kept and nothing is padded. The filter is Pillow's bicubic (a = -0.5),
    widened when shrinking to prevent aliasing; it leaves fainter halos than Lanczos when a small
    picture is enlarged. The crop starts at a whole pixel of the resized picture, so a picture that
    needs no resizing is cropped and never resampled.
    """
    h, w, _ = picture.shape
    # Exact, so that rounding can neither cross an edge nor turn a plain crop into a resampling.
    scale = max(Fraction(height, h), Fraction(width, w))
    top = (h * scale - height) // 2 / scale
    left = (w * scale - width) // 2 / scale
    box = (left, top, left + width / scale, top + height / scale)
    resized = Image.fromarray(picture).resize(
        (width, height),
        Image.Resampling.BICUBIC,
        box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
    )
    return np.array(resized)


def _as_floats(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)
