"""What to sample: a table of requests, with one row per prompt."""

import dataclasses
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, tables
from dynamicrafter_jax.sampling.settings import SamplingSettings

_WHOLE = (
    *("steps", "seed", "height", "width", "num_frames"),
    *("deep_cache_interval", "deep_cache_depth", "guidance_reuse_interval"),
)
_NUMBERS = (
    "eta",
    "guidance_scale",
    "image_guidance_scale",
    "guidance_rescale",
    "fps",
    "video_fps",
    "guidance_start",
    "guidance_stop",
)
_TEXTS = ("solver", "spacing", "negative_prompt", "fit")

SETTING_COLUMNS = (*_WHOLE, *_NUMBERS, *_TEXTS)
"""Settings that a row may set. Each size has its own program; the others are traced, or select
one of a few programs."""

COLUMNS = ("id", "image", "prompt", "end_image", "loop", "num_samples", "preset", *SETTING_COLUMNS)

_SAFE_ID = re.compile(r"[\w][\w.-]*")
_WRITTEN = ("image", "prompt", "end_image", "negative_prompt")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
        name: Name of its files, without extension; no two requests share one.
        image: Path of the picture.
        prompt: What happens; empty for the image alone.
        end_image: Path of the picture to end at, for interpolation.
        loop: Whether the clip ends where it began.
        sample_index: Determines the random draws, together with the seed. It depends on the row's
            id alone, so rows can be reordered.
        settings: How to sample.
    """

    name: str
    image: str
    prompt: str
    end_image: str | None
    loop: bool
    sample_index: int
    settings: SamplingSettings

    @property
    def has_end(self) -> bool:
        """Whether the last frame is given too."""
        return self.loop or self.end_image is not None


def read_requests(
    table: epath.PathLike, section: ConfigDict, *, loop: bool = False, num_samples: int = 1
) -> list[Request]:
    """Reads a `.csv` with a header, or a `.jsonl`: one row per prompt, in any order.

    `tables` describes the formats. Columns are `id` (names the output), `image` (relative to the
    table), and optionally `prompt`, `end_image`, `loop`, `num_samples`, `preset` and
    `SETTING_COLUMNS`. An empty cell counts as missing.

    Args:
        table: The file.
        section: The config section `sampling`, for the settings that a row leaves out.
        loop: Default for rows without `loop`.
        num_samples: Default for rows without `num_samples`. If there are several samples, a number
            is appended to the id of each.

    Raises:
        UserError: The table is missing or empty, or a row is wrong; the message names the line.
    """
    table = files.as_path(table)
    requests: dict[str, Request] = {}
    places: dict[str, str] = {}
    for line, row in _rows(table):
        row = {key: value for key, value in row.items() if value not in (None, "")}
        with tables.naming(table, line):
            for request in _requests_of(row, table.parent, section, loop, num_samples):
                _check_name(request.name, places)
                requests[request.name] = request
    if not requests:
        raise UserError(f"{table} holds no rows")
    return list(requests.values())


def _rows(table: epath.Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields line numbers and rows."""
    kind = table.suffix.lower()
    if kind == ".csv":
        rows = tables.CsvRows(table, tables.read_lines(table), _like_a_row)
        for line, cells in rows:
            named = list(zip(rows.columns, cells, strict=False))
            if any(cell and not column for column, cell in named):
                with tables.naming(table, line):
                    raise UserError("has text in a column without a name: name it, or empty it")
            yield line, dict(named)
    elif kind == ".jsonl":
        yield from tables.json_rows(table, tables.read_lines(table))
    else:
        raise UserError(f"{table}: prompts are read from .csv or .jsonl")


def _like_a_row(cells: tables.Cells) -> bool:
    name, image = cells.get("id", ""), cells.get("image", "")
    return bool(_SAFE_ID.fullmatch(name) and os.path.splitext(image)[1])


def _check_name(name: str, places: dict[str, str]) -> None:
    """Checks that the files of an output don't collide with those of the others.

    Args:
        name: Name of the output.
        places: The earlier names, by their case-insensitive form; the name is added.
    """
    surplus = len(f"{name}.mp4".encode()) - files.NAME_BYTES
    if surplus > 0:
        raise UserError(
            f"id {name[:20]!r}... is {surplus} bytes too long to name a file: give a shorter one"
        )
    place = unicodedata.normalize("NFC", name).casefold()
    if places.get(place) == name:
        raise UserError(f"id {name!r} occurs twice: rename one")
    if place in places:
        raise UserError(
            f"id {name!r} and {places[place]!r} differ only in case, and are the same file on some "
            "disks: rename one"
        )
    places[place] = name


def _requests_of(
    row: Mapping[str, Any], folder: epath.Path, section: ConfigDict, loop: bool, num_samples: int
) -> Iterator[Request]:
    """Yields the clips of a row; error messages don't name the line."""
    if unknown := [str(column) for column in row if column not in COLUMNS]:
        raise UserError(f"unknown column {', '.join(unknown)}: use {', '.join(COLUMNS)}")
    for column in ("id", "image"):
        if column not in row:
            raise UserError(f"has no {column!r}")
    image, prompt, end_image, _ = (_text(row, column) for column in _WRITTEN)
    name = row["id"]
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str):
        raise UserError(f"id is {name!r}: give text or a whole number")
    if not _SAFE_ID.fullmatch(name):
        raise UserError(f"id {name!r} must be letters, digits, '.', '_' and '-'")
    chosen = {column: _number(column, row[column]) for column in SETTING_COLUMNS if column in row}
    settings = SamplingSettings.from_config(section, preset=_text(row, "preset"), **chosen)
    count = _number("num_samples", row.get("num_samples", num_samples))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"num_samples is {count!r}: give a whole number, 1 or more")
    # A loop that a flag asks for does not apply to rows that end at an image.
    loops = _truth("loop", row["loop"]) if "loop" in row else loop and end_image is None
    if loops and end_image is not None:
        raise UserError("end_image and loop exclude each other: a loop ends as it began")
    if (loops or end_image is not None) and settings.num_frames < 2:
        raise UserError("interpolation and looping need sampling.num_frames of at least 2")
    first_index = zlib.crc32(name.encode()) >> 8  # leaves room for more samples
    for i in range(count):
        yield Request(
            name=name if count == 1 else f"{name}-{i}",
            image=os.fspath(folder / (image or "")),
            prompt=prompt or "",
            end_image=None if end_image is None else os.fspath(folder / end_image),
            loop=loops,
            sample_index=first_index + i,
            settings=settings,
        )


def _text(row: Mapping[str, Any], column: str) -> str | None:
    """Returns the text of a cell; None if it is missing."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{column} is {value!r}: put text between double quotes")
    if value is not None and "\0" in value:
        raise UserError(f"{column} is {value!r}, with a null character: remove it")
    if value is not None and "image" not in column and re.search("[\ud800-\udfff]", value):
        raise UserError(f"{column} is {value!r}, with half a character: write it whole")
    return value


def _number(column: str, value: Any) -> Any:
    """Returns a number written as text, as every cell of a `.csv` is."""
    if not isinstance(value, str) or column in _TEXTS:
        return value
    kind, wanted = (float, "a number") if column in _NUMBERS else (int, "a whole number")
    try:
        if "_" not in value:  # Python allows it in numbers
            return kind(value)
    except ValueError:
        pass
    raise UserError(f"{column} {value!r} is not {wanted}")


def _truth(column: str, value: Any) -> bool:
    found = _TRUTH.get(str(value).lower())
    if found is None:
        raise UserError(f"{column} {value!r} is neither true nor false")
    return found
