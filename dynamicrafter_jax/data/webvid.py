"""The WebVid layout: a CSV of `videoid, page_dir, name`, and videos at `page_dir/videoid.mp4`."""

import csv
import io
import os
from array import array
from collections.abc import Iterator

from etils import epath

from dynamicrafter_jax import files
from dynamicrafter_jax.data.texts import decode, safe_name
from dynamicrafter_jax.errors import UserError

COLUMNS = ("videoid", "page_dir", "name")
"""Those that the table must have; `name` is the caption, and others are passed over."""


class WebVidTable:
    """Names and captions of the videos in a table, row by row.

    A local table is read through once, and then again wherever a row is asked for: worker
    processes are sent 8 bytes a row. A remote one is kept in memory, and sent whole.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Finds the rows, and makes sure that each is as it should be.

        Args:
            path: A CSV with a header, in UTF-8, with or without a byte order mark.

        Raises:
            UserError: The table can't be read, lacks columns or has no rows, or a row is wrong:
                names its line.
        """
        self._path = os.fspath(files.as_path(path))
        self._data = files.read_bytes(path) if "://" in self._path else None
        with self._open() as file:
            self._stamp = _stamp(file)
            self._places, self._starts = _scan(file, self._path)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> tuple[str, str]:
        """Returns the name of a video, `page_dir/videoid.mp4`, and its caption."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._path} has no row {index}: it has {len(self)}")
        start, end = self._starts[index], self._starts[index + 1]
        with self._open() as file:
            if _stamp(file) != self._stamp:
                raise UserError(f"{self._path} was changed after it was opened: start again")
            file.seek(start)
            text = file.read(end - start).decode()
        row = next(row for row in csv.reader(io.StringIO(text, newline="")) if row)
        return _name(row, self._places), row[self._places[2]].strip()

    def _open(self) -> io.BufferedIOBase:
        if self._data is not None:
            return io.BytesIO(self._data)
        try:
            return open(self._path, "rb")
        except FileNotFoundError:
            raise UserError(f"{self._path} does not exist: check the path") from None
        except OSError as error:
            raise UserError(f"{self._path} can't be read: {error.strerror}") from error


def _scan(file: io.BufferedIOBase, path: str) -> tuple[list[int], "array[int]"]:
    """Returns where the columns are in a row, and where rows start, with the end of the last."""
    number = end = 0

    def lines() -> Iterator[str]:
        nonlocal number, end
        for line in file:
            number += 1
            end += len(line)
            yield decode(line)

    try:
        rows = csv.reader(lines(), strict=True)
        header = [name.strip() for name in next(rows, [])]
        if missing := [name for name in COLUMNS if name not in header]:
            raise UserError(
                f"has no column {' and no '.join(missing)}: it holds "
                f"{', '.join(header)[:200] or 'nothing'}, where {', '.join(COLUMNS)} are needed"
            )
        places = [header.index(name) for name in COLUMNS]
        starts = array("Q", [end])
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"has {len(row)} columns, where the first line has {len(header)}: "
                    "put text with a comma in it between double quotes"
                )
            if not row[places[0]].strip():
                raise UserError("has no videoid")
            safe_name(_name(row, places))
            starts.append(end)
        if len(starts) == 1:
            raise UserError("is the last: there are no rows, and nothing to train on")
    except csv.Error as error:
        raise UserError(f"{path}, line {number}, is not CSV: {error}") from error
    except UserError as error:
        raise UserError(f"{path}, line {max(number, 1)}, {error}") from None
    return places, starts


def _name(row: list[str], places: list[int]) -> str:
    folder, video = row[places[1]].strip(), row[places[0]].strip()
    return f"{folder}/{video}.mp4" if folder else f"{video}.mp4"


def _stamp(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """What changes if the file does: size and time; None for what lies in memory."""
    if isinstance(file, io.BytesIO):
        return None
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
