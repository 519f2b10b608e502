"""Turns what users give as an image into the array that a model takes."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.cropping import Window, cover_and_crop, letterbox
from dynamicrafter_jax.media.pillow import check_sides, read_picture, rgb_of
from dynamicrafter_jax.runtime import files

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray
"""What `fit_image` accepts."""


def fit_image(
    image: ImageInput, height: int, width: int, fit: str
) -> tuple[Float32[np.ndarray, "h w 3"], Window]:
    """Loads what a person gives as an image, at the model's size, cropped or whole.

    Args:
        image: The path of a picture, a Pillow image or a uint8 array (h, w, 3), which are resized;
            or a float32 array (height, width, 3) in [-1, 1], or the path of a `.npy` file that
            holds one, which are used unchanged, whatever `fit` is.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
        fit: "crop" for a picture that fills the result and is cropped in its longer direction;
            "letterbox" for the whole picture, with its borders repeated around it.

    Returns:
        float32 (height, width, 3) in [-1, 1], and the part of it to show.

    Raises:
        UserError: It can't be read or is not one of these; or there is no such `fit`, or the
            picture is too narrow.
    """
    if fit not in ("crop", "letterbox"):
        raise UserError(f"fit is {fit!r}: choose from crop, letterbox")
    whole = Window(0, 0, height, width)
    if isinstance(image, Image.Image):
        picture = rgb_of(image)
    elif isinstance(image, np.ndarray) and image.dtype != np.uint8:
        return _checked_array(image, height, width, "the image array"), whole
    elif isinstance(image, np.ndarray):
        picture = _checked_pixels(image)
    elif isinstance(image, str | os.PathLike):
        if files.as_path(image).suffix.lower() == ".npy":
            array = files.read_array(image)
            return _checked_array(array, height, width, os.fspath(image)), whole
        picture = read_picture(image)
    else:
        raise UserError(
            f"an image can't be of type {type(image).__name__}: give a path, a Pillow image, "
            "or a uint8 array (h, w, 3)"
        )
    if fit == "crop":
        return cover_and_crop(picture, height, width), whole
    return letterbox(picture, height, width)


def fit_images(
    images: Sequence[ImageInput], height: int, width: int, fit: str
) -> tuple[Float32[np.ndarray, "n h w 3"], Window]:
    """Loads the images of a batch as `fit_image` does.

    Returns:
        float32 (n, height, width, 3) in [-1, 1], and the part of all of them to show.

    Raises:
        UserError: As in `fit_image`; or these parts differ, while videos of a batch must have the
            same size.
    """
    fitted = [fit_image(image, height, width, fit) for image in images]
    sizes = {f"{window.width} x {window.height}": window for _, window in fitted}
    if len(sizes) > 1:
        raise UserError(
            f"the fit 'letterbox' needs pictures of one aspect ratio, but these give videos of "
            f"{' and '.join(sizes)} pixels: cut them to the same shape, make each video by itself, "
            "or use the fit 'crop'"
        )
    return np.stack([pixels for pixels, _ in fitted]), fitted[0][1]


def _checked_pixels(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"the image array must be (h, w, 3): it is {array.shape}")
    check_sides(array.shape[0], array.shape[1], "the image array")
    return array


def _checked_array(
    array: np.ndarray, height: int, width: int, name: str
) -> Float32[np.ndarray, "h w 3"]:
    expected = (height, width, 3)
    if array.dtype != np.float32 or array.shape != expected:
        raise UserError(
            f"{name} must be float32 {expected} in [-1, 1]: it is {array.dtype} {array.shape}"
        )
    low, high = array.min(), array.max()
    if not (low >= -1 and high <= 1):  # written like this, NaN fails
        raise UserError(f"{name} must lie in [-1, 1]: its values go from {low:g} to {high:g}")
    return array
