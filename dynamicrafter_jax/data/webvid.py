"""The WebVid layout: a CSV of `videoid, page_dir, name`, and videos at `page_dir/videoid.mp4`."""

import io
import os
from array import array
from collections.abc import Iterable, Iterator

from etils import epath

from dynamicrafter_jax.data.texts import safe_name
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, tables

COLUMNS = ("videoid", "page_dir", "name")
"""Columns that the table must have; `name` is the caption, and others are ignored."""

_HEAD = 1 << 16  # bytes that reveal the kind of a table


class WebVidTable:
    """Names and captions of the videos in a table, row by row.

    A local table is read through once, and rows are read again when they are asked for, so worker
    processes are sent 8 bytes a row. A table that is remote, in UTF-16 or with lines that end in CR
    alone is kept in memory, and sent whole.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Finds the rows, and checks each of them.

        Args:
            path: A CSV with a header; see `tables.CsvRows` and `tables.decode`.

        Raises:
            UserError: The table can't be read, lacks columns or has no rows, or a row is wrong;
                the message names its line.
        """
        self._path = os.fspath(files.as_path(path))
        self._data = files.read_bytes(path) if "://" in self._path else None
        with self._open() as file:
            head = file.read(_HEAD)
        tables.refuse_pointer(path, head)
        if head.startswith(tables.UTF16_MARKS) or (b"\r" in head and b"\n" not in head):
            lines = (line.rstrip("\r\n") + "\n" for line in tables.read_lines(path))
            self._data = "".join(lines).encode()
        with self._open() as file:
            self._stamp = _stamp(file)
            self._places, self._delimiter, self._starts = _scan(file, self._path)

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
        row = tables.split(text, self._delimiter)
        return _name(row, self._places), row[self._places[2]]

    def _open(self) -> io.BufferedIOBase:
        if self._data is not None:
            return io.BytesIO(self._data)
        try:
            return open(self._path, "rb")
        except FileNotFoundError:
            raise UserError(f"{self._path} does not exist: check the path") from None
        except OSError as error:
            raise UserError(f"{self._path} can't be read: {error.strerror}") from error


def _scan(lines: Iterable[bytes], path: str) -> tuple[list[int], str, "array[int]"]:
    """Returns the positions of the columns in a row, the delimiter, and where rows start."""
    end = 0

    def texts() -> Iterator[str]:
        nonlocal end
        number = 0
        try:
            for line in lines:
                number += 1
                end += len(line)
                yield tables.plain(line)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None

    rows = tables.CsvRows(path, texts(), _like_a_row)
    with tables.naming(path, 1):
        if missing := [name for name in COLUMNS if name not in rows.columns]:
            raise UserError(
                f"has no column {' and no '.join(missing)}: it holds "
                f"{', '.join(rows.columns)[:200] or 'nothing'}, but needs {', '.join(COLUMNS)}"
            )
    places = [rows.columns.index(name) for name in COLUMNS]
    starts = array("Q", [end])
    for line, cells in rows:
        try:
            _check(cells, len(rows.columns), places)
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        starts.append(end)
    if len(starts) == 1:
        raise UserError(f"{path} has no rows after its header: there is nothing to train on")
    return places, rows.delimiter, starts


def _check(cells: list[str], width: int, places: list[int]) -> None:
    if len(cells) < width:
        raise UserError(
            f"has {len(cells)} cells, but the header has {width}: is the end of the file missing?"
        )
    if not cells[places[0]]:
        raise UserError("has no videoid")
    safe_name(_name(cells, places))


def _like_a_row(cells: tables.Cells) -> bool:
    words = [cells.get(name, " ") for name in ("videoid", "page_dir")]
    return "name" in cells and bool(words[0]) and not any(" " in word for word in words)


def _name(row: list[str], places: list[int]) -> str:
    folder, video = row[places[1]].strip(), row[places[0]].strip()
    return f"{folder}/{video}.mp4" if folder else f"{video}.mp4"


def _stamp(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """Returns a file's size and time, which change if the file does; None for one in memory."""
    if isinstance(file, io.BytesIO):
        return None
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
