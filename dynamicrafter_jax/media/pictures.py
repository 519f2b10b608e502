"""Pictures in: whatever Pillow reads becomes 8-bit RGB, and that the array a model takes."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from dynamicrafter_jax import files
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.cropping import Window, cover_and_crop, letterbox

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray
"""What `load_image` takes."""

MIN_SIDE = 16
"""Pixels; a picture with a shorter side has nothing to animate."""

MAX_PIXELS = 100_000_000
"""Pixels of a picture, read from its header before anything is decoded."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF 2.32, tag "Orientation": what undoes each value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_PILLOW_LOCK = threading.Lock()


def read_picture(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture of any format and colour mode that Pillow knows, as 8-bit RGB.

    EXIF orientation is applied, transparency is laid over white, and of an animation the first
    frame is taken. 16-bit grey is scaled by 1/257. Floating-point grey within [0, 1] is scaled
    by 255; within [0, 255] it is taken as it is. Colour profiles are ignored.

    Raises:
        UserError: The file is missing, truncated or no picture, or the picture has a side under
            `MIN_SIDE` or more than `MAX_PIXELS` pixels.
    """
    name = os.fspath(path)
    data = files.read_bytes(path)
    with _pillow(name):
        return _to_rgb(Image.open(io.BytesIO(data)), name)


def load_image(image: ImageInput, height: int, width: int) -> Float32[np.ndarray, "h w 3"]:
    """Loads what a person gives as an image, at the model's size.

    Args:
        image: The path of a picture, a Pillow image or a uint8 array (h, w, 3), which are resized
            and cropped; or the path of a `.npy` file, or an array, that is float32
            (height, width, 3) in [-1, 1] already, which is used as it is.
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        float32 (height, width, 3) in [-1, 1].

    Raises:
        UserError: It can't be read or is not one of these.
    """
    return fit_image(image, height, width, "crop")[0]


def fit_image(
    image: ImageInput, height: int, width: int, fit: str
) -> tuple[Float32[np.ndarray, "h w 3"], Window]:
    """Loads an image as `load_image` does, cropped or whole.

    Args:
        image: As in `load_image`; float32 arrays are used as they are, whatever `fit` is.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        fit: "crop" for a picture that fills the result, and is cut where it is longer;
            "letterbox" for the whole picture, with its borders repeated around it.

    Returns:
        float32 (height, width, 3) in [-1, 1], and which part of it is to be shown.

    Raises:
        UserError: As in `load_image`; or there is no such `fit`, or the picture is too narrow.
    """
    if fit not in ("crop", "letterbox"):
        raise UserError(f"fit is {fit!r}: choose of crop, letterbox")
    whole = Window(0, 0, height, width)
    if isinstance(image, Image.Image):
        with _pillow("the image"):
            picture = _to_rgb(image, "the image")
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
            f"an image can't be a {type(image).__name__}: give a path, a Pillow image, "
            "or a uint8 array (h, w, 3)"
        )
    if fit == "crop":
        return cover_and_crop(picture, height, width), whole
    return letterbox(picture, height, width)


def fit_images(
    images: Sequence[ImageInput], height: int, width: int, fit: str
) -> tuple[Float32[np.ndarray, "n h w 3"], Window]:
    """Loads images of one batch as `fit_image` does.

    Returns:
        float32 (n, height, width, 3) in [-1, 1], and which part of all is to be shown.

    Raises:
        UserError: As in `fit_image`; or that part is not the same, as videos of one batch are of
            one size.
    """
    fitted = [fit_image(image, height, width, fit) for image in images]
    sizes = {f"{window.width} x {window.height}": window for _, window in fitted}
    if len(sizes) > 1:
        raise UserError(
            f"pictures of one aspect are needed with the fit 'letterbox': these give videos of "
            f"{' and '.join(sizes)} pixels; cut the pictures alike, make each video by itself, or "
            "crop them with the fit 'crop'"
        )
    return np.stack([pixels for pixels, _ in fitted]), fitted[0][1]


@contextlib.contextmanager
def _pillow(name: str) -> Iterator[None]:
    """Holds back Pillow's warnings, and says in one line what it could not read."""
    # Warning filters belong to the whole process, so only one thread at a time may change them.
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise UserError(
                f"{name} is not a picture of a known format: convert it to PNG or JPEG"
            ) from error
        except Image.DecompressionBombError as error:
            raise UserError(_too_large(name)) from error
        except Exception as error:
            # Decoders raise errors of every kind on damaged data.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{name} is truncated or damaged ({reason}): make or copy it again"
            ) from error


def _to_rgb(picture: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a picture, upright and in 8-bit RGB."""
    _check_header(picture, name)
    picture.load()
    # Only now: Pillow turns a TIFF by itself while it loads it, and drops the tag.
    turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG, 1))
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I"):
        return _from_grey(_scale_integers(np.asarray(picture), name))
    if picture.mode == "F":
        return _from_grey(_scale_floats(np.asarray(picture), name))
    if picture.mode not in _COLOUR_MODES:
        raise UserError(f"{name} has the colour mode {picture.mode}: save it as RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _check_header(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if picture.format in ("EPS", "WMF"):
        # Drawing these means running another program on data that nobody has vouched for.
        raise UserError(f"{name} is a vector drawing ({picture.format}): export it as PNG")
    _check_sides(height, width, name)
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(f"{name}, of {width} x {height} pixels,"))


def _check_sides(height: int, width: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"{name} is too small, {width} x {height} pixels: "
            f"give a picture of {MIN_SIDE} pixels or more on each side"
        )


def _too_large(name: str) -> str:
    return (
        f"{name} is larger than {MAX_PIXELS // 1_000_000} million pixels: "
        "shrink it, to 2048 pixels on its longer side for instance"
    )


def _scale_integers(values: np.ndarray, name: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise UserError(
            f"{name} holds grey values from {low} to {high}, outside 0 to 65535: "
            "save it with 8 or 16 bits"
        )
    return np.rint(values / 257)


def _scale_floats(values: np.ndarray, name: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # so written, NaN fails
        raise UserError(
            f"{name} holds floating-point values from {low:g} to {high:g}, outside [0, 1] "
            "and [0, 255]: scale them or save it with 8 bits"
        )
    return np.rint(values * 255 if high <= 1 else values)


def _from_grey(values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)


def _checked_pixels(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"the image array must be (h, w, 3): it is {array.shape}")
    _check_sides(array.shape[0], array.shape[1], "the image array")
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
    if not (low >= -1 and high <= 1):  # so written, NaN fails
        raise UserError(f"{name} must lie in [-1, 1]: its values go from {low:g} to {high:g}")
    return array
