"""Reads pictures with Pillow as 8-bit RGB, upright and on white."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageSequence, UnidentifiedImageError

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.metadata import without_metadata
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

T = TypeVar("T")

MIN_SIDE = 16
"""Least side of a picture, in pixels; a smaller one has nothing to animate."""

MAX_PIXELS = 100_000_000
"""Most pixels in a picture, which are read from its header before anything is decoded."""

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

_ANIMATIONS = ("WEBP", "PNG")


def read_picture(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture of any format and colour mode that Pillow knows, as 8-bit RGB.

    EXIF orientation is applied, transparency is shown over white, and the first frame of an
    animation is used. 16-bit grey is scaled by 1/257. Floating-point grey is scaled by 255 if it is
    within [0, 1], and kept if it is within [0, 255]. Colour profiles are ignored, and so is all
    broken metadata.

    Raises:
        UserError: The file is missing, truncated or not a picture, or the picture has a side under
            `MIN_SIDE` or more than `MAX_PIXELS` pixels.
    """
    name = os.fspath(path)
    return _decode(files.read_bytes(path), name, lambda picture: _to_rgb(picture, name))


def size_of_picture(data: bytes, name: str) -> tuple[int, int]:
    """Returns the height and width of a picture from its header, as stored.

    Args:
        data: The contents of the file.
        name: What error messages call it.

    Raises:
        UserError: As in `read_picture`, as far as the header shows.
    """

    def size(picture: Image.Image) -> tuple[int, int]:
        _check_header(picture, name)
        return picture.size[1], picture.size[0]

    return _decode(data, name, size)


def rgb_of(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Does what `read_picture` does for a Pillow image that is already open."""
    name = "the image"
    with _explained(name, None):
        try:
            return _to_rgb(picture, name)
        except _CERTAIN:
            raise
        except Exception:  # as in `_decode`
            # Its pixels may be whole, and can be read if its file is still open.
            if not isinstance(picture, ImageFile.ImageFile) or not picture.fp:
                raise
            picture.fp.seek(0)
            return _to_rgb(Image.open(io.BytesIO(without_metadata(picture.fp.read()))), name)


@contextlib.contextmanager
def open_animation(data: bytes, name: str) -> Iterator[Image.Image]:
    """Opens a still or animated WebP or PNG; ffmpeg reads only their first frames.

    Args:
        data: The contents of the file.
        name: What error messages call it.

    Raises:
        UserError: The file is truncated or something else, which may show only inside the block.
    """
    with _explained(name, data):
        file = io.BytesIO(without_metadata(data, animated=True))
        with Image.open(file, formats=_ANIMATIONS) as picture:
            _check_header(picture, name)
            yield picture


def frames_of_animation(
    data: bytes, name: str, indices: Sequence[int]
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns frames of an animation as displayed, each converted as in `read_picture`.

    Args:
        data: The contents of the file; see `open_animation`.
        name: What error messages call it.
        indices: Numbers of frames, from 0.

    Raises:
        UserError: As in `open_animation`; or a frame is missing.
    """
    wanted = set(indices)
    with open_animation(data, name) as picture:
        found = {
            i: _to_rgb(frame, name)
            for i, frame in enumerate(ImageSequence.Iterator(picture))
            if i in wanted
        }
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{name} is damaged: frame {missing[0]} can't be decoded")
    return [found[i] for i in indices]


# Errors that a second attempt without metadata would only repeat.
_CERTAIN = (UserError, MemoryError, Image.DecompressionBombError)


def _decode(data: bytes, name: str, use: Callable[[Image.Image], T]) -> T:
    """Opens a picture and passes it to `use`; tries again without metadata if that fails."""
    with _explained(name, data):
        try:
            return use(Image.open(io.BytesIO(data)))
        except _CERTAIN:
            raise
        except Exception:  # Pillow's readers raise what their parsers do
            bare = without_metadata(data)
            if bare == data:
                raise
            return use(Image.open(io.BytesIO(bare)))


@contextlib.contextmanager
def _explained(name: str, data: bytes | None) -> Iterator[None]:
    """Suppresses Pillow's warnings, and turns its errors into one-line messages."""
    # Warning filters are global to the process, so only one thread at a time may change them.
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Image.DecompressionBombError as error:
            raise UserError(_too_large(name)) from error
        except Exception as error:
            # Decoders raise errors of every kind on damaged data.
            if data is not None:
                refuse_placeholder(name, data)
            if isinstance(error, UnidentifiedImageError):
                raise UserError(
                    f"{name} is not a picture of a known format: convert it to PNG or JPEG"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{name} is truncated or damaged ({reason}): make or copy it again"
            ) from error


def _to_rgb(picture: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a picture, upright and in 8-bit RGB."""
    _check_header(picture, name)
    key = _transparent_colour(picture)
    picture.load()
    # Must follow `load`: Pillow itself turns a TIFF while loading it, and drops the tag.
    turn = _UPRIGHT.get(_orientation(picture))
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        grey = _scale_integers(values, name)
        return _from_grey(grey if key is None else np.where(values == key, 255, grey))
    if picture.mode == "F":
        return _from_grey(_scale_floats(np.asarray(picture), name))
    if picture.mode not in _COLOUR_MODES:
        raise UserError(f"{name} has the colour mode {picture.mode}: save it as RGB")
    if key is not None and key != picture.info.get("transparency"):
        picture = picture.copy()
        picture.info["transparency"] = key
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _transparent_colour(picture: Image.Image) -> int | tuple[int, ...] | None:
    """Returns the colour of a PNG that stands for transparency, in the range of Pillow's pixels.

    Pillow leaves it in the bit depth of the file.
    """
    key = picture.info.get("transparency")
    if picture.format != "PNG" or picture.mode == "P" or key is None:
        return None
    tiles = getattr(picture, "tile", [])  # what is still to be decoded
    stored = str(tiles[0][3]) if tiles else picture.mode
    if stored.startswith("RGB;16"):
        return tuple(value >> 8 for value in key)
    if stored in ("L;2", "L;4"):
        return key * (255 // (2 ** int(stored[2:]) - 1))
    return key


def _orientation(picture: Image.Image) -> int:
    """Returns a picture's orientation from EXIF; 1, which is upright, if that can't be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF raises errors of every kind
        return 1


def _check_header(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if picture.format in ("EPS", "WMF"):
        # Rendering these would run another program on untrusted data.
        raise UserError(f"{name} is a vector drawing ({picture.format}): export it as PNG")
    check_sides(height, width, name)
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(f"{name}, of {width} x {height} pixels,"))


def check_sides(height: int, width: int, name: str) -> None:
    """Raises `UserError` for a picture with nothing to animate."""
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"{name} is too small, {width} x {height} pixels: "
            f"give a picture of {MIN_SIDE} pixels or more on each side"
        )


def _too_large(name: str) -> str:
    return (
        f"{name} is larger than {MAX_PIXELS // 1_000_000} million pixels: "
        "shrink it, for instance to 2048 pixels on its longer side"
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
    if not (low >= 0 and high <= 255):  # written like this, NaN fails
        raise UserError(
            f"{name} holds floating-point values from {low:g} to {high:g}, outside [0, 1] "
            "and [0, 255]: scale them or save it with 8 bits"
        )
    return np.rint(values * 255 if high <= 1 else values)


def _from_grey(values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)
