"""Folders of frames: finds the frames among their files, and puts them in order."""

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from itertools import pairwise
from pathlib import PurePosixPath

from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Extensions of the files that are pictures, in lower or upper case."""

_WHOLE = re.compile(r"(\d+)")
# A number with one point, such as seconds; 1.2.3 is three whole numbers.
_DECIMAL = re.compile(r"((?<![\d.])\d+\.\d+(?![\d.])|\d+)")


def is_picture(name: str) -> bool:
    """Returns whether a file counts as a picture, by its name. Hidden files don't."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def list_frames(folder: epath.PathLike) -> list[epath.Path]:
    """Returns the pictures in a folder in natural order (`in_natural_order`).

    All other files in it are ignored.

    Args:
        folder: The folder, local or remote.

    Raises:
        UserError: Two pictures have the same name except for the extension, or the same number in
            two series, such as `rgb_1.png` and `depth_1.png`.
    """
    found = {file.name: file for file in files.as_path(folder).iterdir() if is_picture(file.name)}
    names = in_natural_order(found)
    _check_one_series(folder, names)
    return [found[name] for name in names]


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sorts file names by the numbers in them: `2.png` comes before `10.png`.

    Extensions, case and leading zeros are ignored, except to order names that are otherwise equal.
    Numbers with one point are decimals, as in `f_0.5s` and `f_0.25s`, unless trailing zeros show
    that they are two numbers, as in `1.9` and `1.10`.
    """
    names = list(names)
    number = _number_pattern(names)
    return sorted(names, key=lambda name: (_key(name, number), name))


def _key(name: str, number: re.Pattern[str]) -> list[str | Decimal]:
    """Returns alternating text and numbers, text first."""
    parts = number.split(unicodedata.normalize("NFKC", _stem(name)).casefold())
    return [Decimal(part) if i % 2 else part for i, part in enumerate(parts)]


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _number_pattern(names: Iterable[str]) -> re.Pattern[str]:
    found = (part for name in names for part in _DECIMAL.findall(_stem(name)))
    fractions = [part.partition(".")[2] for part in found if "." in part]
    if len(set(map(len, fractions))) < 2:  # either way gives the same order
        return _DECIMAL
    counting = any(len(fraction) > 1 and fraction.endswith("0") for fraction in fractions)
    return _WHOLE if counting else _DECIMAL


def _check_one_series(folder: epath.PathLike, names: list[str]) -> None:
    for one, other in pairwise(sorted(names, key=_stem)):
        if _stem(one) == _stem(other):
            raise UserError(
                f"{folder} has the frames {one} and {other} with the same name: keep one of them"
            )
    number = _number_pattern(names)
    seen: dict[tuple[str | Decimal, ...], tuple[str, str]] = {}
    for name in names:
        before, *after = _key(name, number)
        series = str(before).rstrip(" _-.(")
        other_series, other = seen.setdefault(tuple(after), (series, name))
        if after and series != other_series:
            raise UserError(
                f"{folder} has frames of two series, such as {other} and {name}: "
                "put each series into its own folder"
            )
