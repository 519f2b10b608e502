"""What to sample: one request from flags, or a table of them."""

import csv
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from dynamicrafter_jax.errors import UserError


@dataclass(frozen=True)
class Request:
    """One video to make.

    Attributes:
        image: Path of the picture.
        output: Path of the video.
        prompt: What happens; empty for the image alone.
        end_image: Path of the picture to end at, for interpolation.
        seed: Of its random draws; None for the config's.
        first_index: Global index of its first sample. Together with the seed it decides the
            draws; in a table it follows from the row's id, so that rows can change places.
    """

    image: str
    output: str
    prompt: str = ""
    end_image: str | None = None
    seed: int | None = None
    first_index: int = 0


_COLUMNS = ("id", "image", "prompt", "end_image", "seed")
_SAFE_ID = re.compile(r"[\w][\w.-]*")


def read_requests(table: str | epath.Path, output_dir: str | epath.Path) -> list[Request]:
    """Reads a `.csv` with a header, or a `.jsonl`, of requests.

    Columns are `id` (names the output file), `image` (relative to the table), and optionally
    `prompt`, `end_image` and `seed`.

    Args:
        table: The file.
        output_dir: Folder of the videos, named `<id>.mp4`.

    Raises:
        UserError: If the table is missing, empty, or a row is wrong; the message names the line.
    """
    table, output_dir = epath.Path(table), epath.Path(output_dir)
    requests: dict[str, Request] = {}
    for line, row in _rows(table):
        where = f"{table}, line {line}"
        row = {key: value for key, value in row.items() if value not in (None, "")}
        if unknown := set(row) - set(_COLUMNS):
            raise UserError(f"{where}: unknown column {sorted(map(str, unknown))}: use {_COLUMNS}")
        for column in ("id", "image"):
            if column not in row:
                raise UserError(f"{where}: no {column!r}")
        name = str(row["id"])
        if not _SAFE_ID.fullmatch(name):
            raise UserError(f"{where}: id {name!r} must be letters, digits, '.', '_' and '-'")
        if name in requests:
            raise UserError(f"{where}: id {name!r} stands twice")
        try:
            seed = int(row["seed"]) if "seed" in row else None
        except ValueError:
            raise UserError(f"{where}: seed {row['seed']!r} is not a whole number") from None
        end_image = row.get("end_image")
        requests[name] = Request(
            image=str(table.parent / row["image"]),
            output=str(output_dir / f"{name}.mp4"),
            prompt=str(row.get("prompt", "")),
            end_image=None if end_image is None else str(table.parent / end_image),
            seed=seed,
            first_index=zlib.crc32(name.encode()) >> 8,  # leaves room for more samples
        )
    if not requests:
        raise UserError(f"{table} holds no rows")
    return list(requests.values())


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
        for row in reader:
            yield reader.line_num, row
    elif table.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
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
