"""Writes PNG files, and lays out the frames of a video on one sheet."""

import io
import math

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.cropping import cover
from dynamicrafter_jax.runtime import files

_GAP = 4  # pixels around each frame of a sheet


def write_png(path: epath.PathLike, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG file atomically (`files.write_bytes`)."""
    files.write_bytes(path, encode_png(picture))


def encode_png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def contact_sheet(
    video: UInt8[np.ndarray, "t h w 3"],
    *,
    columns: int,
    picture: UInt8[np.ndarray, "_ _ 3"] | None = None,
    caption: str = "",
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Lays out frames in rows on white, left to right and top to bottom.

    Args:
        video: The frames.
        columns: Frames in a row.
        picture: The picture they were made from, shown to the left of the first row and cropped to
            the size of a frame.
        caption: A text below, broken into lines. Pillow's own font has plain Latin letters only;
            others show as boxes.

    Raises:
        UserError: There are no frames, or `columns` is under 1.
    """
    t, h, w, _ = video.shape
    if columns < 1 or t < 1:
        raise UserError(f"a contact sheet needs a frame and a column: got {t} and {columns}")
    columns = min(columns, t)
    left = _GAP if picture is None else w + 4 * _GAP
    rows = math.ceil(t / columns)
    shape = (_GAP + rows * (h + _GAP), left + columns * (w + _GAP), 3)
    sheet = np.full(shape, 255, np.uint8)
    if picture is not None:
        sheet[_GAP : _GAP + h, _GAP : _GAP + w] = cover(picture, h, w)
    for i, frame in enumerate(video):
        y, x = _GAP + i // columns * (h + _GAP), left + i % columns * (w + _GAP)
        sheet[y : y + h, x : x + w] = frame
    return np.concatenate([sheet, _text(caption, sheet.shape[1], max(14, h // 8))])


def _text(text: str, width: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draws black text on white, `size` pixels high, in lines of at most `width` pixels."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width - 2 * _GAP:
            lines[-1] = longer
        else:
            lines.append(word)
    line_height = size + size // 3
    picture = Image.new("RGB", (width, line_height * len(lines)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((_GAP, i * line_height), line, fill="black", font=font)
    return np.array(picture).reshape(-1, width, 3)
