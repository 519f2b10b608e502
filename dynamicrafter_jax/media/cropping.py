"""From a picture of any size to one of the model's size."""

from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


def cover_and_crop(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> Float32[np.ndarray, "height width 3"]:
    """Returns `cover` of the picture in the range that the models take.

    Returns:
        float32 (height, width, 3), x / 127.5 - 1.
    """
    return cover(picture, height, width).astype(np.float32) / np.float32(127.5) - np.float32(1)


def cover(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes a picture until it covers height x width, and cuts out the middle.

    The aspect is kept and nothing is padded. The filter is Pillow's bicubic (a = -0.5), widened
    when shrinking so that nothing aliases; it leaves fainter halos than Lanczos where a small
    picture is enlarged. The cut starts at a whole pixel of the resized picture, so a picture that
    needs no resizing is cut and never resampled.
    """
    h, w, _ = picture.shape
    # Exact, so that no rounding reaches past an edge or turns a plain cut into a resampling.
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
