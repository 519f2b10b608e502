"""What to sample: a table of requests, one row a prompt."""

import csv
import dataclasses
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.files import as_path
from dynamicrafter_jax.sampling import SamplingSettings

_WHOLE = ("steps", "seed")
_NUMBERS = ("eta", "guidance_scale", "image_guidance_scale", "guidance_rescale", "fps")
_TEXTS = ("spacing", "negative_prompt", "fit")

SETTING_COLUMNS = (*_WHOLE, *_NUMBERS, *_TEXTS)
"""Settings that a row may choose; all are traced, or choose among a few programs."""

COLUMNS = ("id", "image", "prompt", "end_image", "loop", "num_samples", *SETTING_COLUMNS)

_SAFE_ID = re.compile(r"[\w][\w.-]*")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
        name: Of its files, without the extension; no two requests share it.
        image: Path of the picture.
        prompt: What happens; empty for the image alone.
        end_image: Path of the picture to end at, for interpolation.
        loop: Whether the clip ends where it began.
        sample_index: With the seed, it decides the random draws. It follows from the row's id
            alone, so that rows can change places.
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
    """Reads a `.csv` with a header, or a `.jsonl`: one row a prompt, in any order.

    Columns are `id` (names the output), `image` (relative to the table), and optionally `prompt`,
    `end_image`, `loop`, `num_samples` and `SETTING_COLUMNS`. An empty cell is as good as none.

    Args:
        table: The file.
        section: The config section `sampling`, for the settings that a row leaves out.
        loop: For rows that do not say.
        num_samples: For rows that do not say. With several, each has its number behind the id.

    Raises:
        UserError: If the table is missing, empty, or a row is wrong; the message names the line.
    """
    table = as_path(table)
    requests: dict[str, Request] = {}
    for line, row in _rows(table):
        row = {key: value for key, value in row.items() if value not in (None, "")}
        try:
            for request in _requests_of(row, table.parent, section, loop, num_samples):
                if request.name in requests:
                    raise UserError(f"id {request.name!r} stands twice")
                requests[request.name] = request
        except UserError as error:
            raise UserError(f"{table}, line {line}: {error}") from None
    if not requests:
        raise UserError(f"{table} holds no rows")
    return list(requests.values())


def _requests_of(
    row: Mapping[str, Any], folder: epath.Path, section: ConfigDict, loop: bool, num_samples: int
) -> Iterator[Request]:
    """Yields the clips of a row, without a line number in what is wrong with it."""
    if unknown := [str(column) for column in row if column not in COLUMNS]:
        raise UserError(f"unknown column {', '.join(unknown)}: use {', '.join(COLUMNS)}")
    for column in ("id", "image"):
        if column not in row:
            raise UserError(f"no {column!r}")
    name = str(row["id"])
    if not _SAFE_ID.fullmatch(name):
        raise UserError(f"id {name!r} must be letters, digits, '.', '_' and '-'")
    chosen = {column: _number(column, row[column]) for column in SETTING_COLUMNS if column in row}
    settings = SamplingSettings.from_config(section, **chosen)
    count = _number("num_samples", row.get("num_samples", num_samples))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"num_samples is {count!r}: a whole number of at least 1 is needed")
    end_image = row.get("end_image")
    # Where a row ends at an image, a loop that was asked for by a flag is not meant.
    loops = _truth("loop", row["loop"]) if "loop" in row else loop and end_image is None
    if loops and end_image is not None:
        raise UserError("end_image and loop exclude each other: a loop ends as it began")
    if (loops or end_image is not None) and settings.num_frames < 2:
        raise UserError("interpolation and looping need sampling.num_frames of at least 2")
    first_index = zlib.crc32(name.encode()) >> 8  # leaves room for more samples
    for i in range(count):
        yield Request(
            name=name if count == 1 else f"{name}-{i}",
            image=str(folder / str(row["image"])),
            prompt=str(row.get("prompt", "")),
            end_image=None if end_image is None else str(folder / str(end_image)),
            loop=loops,
            sample_index=first_index + i,
            settings=settings,
        )


def _number(column: str, value: Any) -> Any:
    """Returns a number written as text, as every cell of a `.csv` is."""
    if not isinstance(value, str) or column in _TEXTS:
        return value
    kind, wanted = (float, "a number") if column in _NUMBERS else (int, "a whole number")
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{column} {value!r} is not {wanted}") from None


def _truth(column: str, value: Any) -> bool:
    found = _TRUTH.get(str(value).lower())
    if found is None:
        raise UserError(f"{column} {value!r} is neither true nor false")
    return found


def _rows(table: epath.Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields line numbers and rows."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{table} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"cannot read {table}: {error}") from error
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{table}, line {reader.line_num}: {error}") from None
    elif table.suffix == ".jsonl":
        # Not `splitlines`: it also breaks at characters that JSON allows within a text.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _json_object(table, number, line)
    else:
        raise UserError(f"{table}: prompts are read from .csv or .jsonl")


def _json_object(table: epath.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{table}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{table}, line {number}: a JSON object is needed")
    return row
