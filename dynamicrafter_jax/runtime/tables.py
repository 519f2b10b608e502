"""Tables that people write, as CSV or lines of JSON: read as a spreadsheet would, or refused.

Errors name the line, so no row is silently lost or merged with another.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import describe_pointer

_SPOKEN = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_DELIMITERS = tuple(_SPOKEN)
_BLANK = "".join(_DELIMITERS) + ' "\r\n'
_QUOTES = 'a double quote within double quotes is written twice ("")'

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks at the beginning of text in UTF-16."""

Cells = Mapping[str, str]
"""The cells of a row, by the names of their columns."""


def refuse_pointer(path: epath.PathLike, data: bytes) -> None:
    """Refuses a text file that is only a pointer to the file, given its contents or beginning.

    Raises:
        UserError: It is a pointer.
    """
    if pointer := describe_pointer(data):
        raise UserError(f"{path} is {pointer}")


def decode(data: bytes) -> str:
    """Returns text in UTF-8, or in UTF-16 with a byte order mark, without that mark.

    Raises:
        UserError: It is neither, or a pointer to the file. The message continues one that names
            the text.
    """
    if pointer := describe_pointer(data):
        raise UserError(f"is {pointer}")
    kind = "UTF-16" if data.startswith(UTF16_MARKS) else "UTF-8"
    try:
        return data.decode(kind).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"is not {kind}: byte 0x{data[error.start]:02x} at position {error.start}; "
            "save the file as UTF-8"
        ) from None


def read_lines(path: epath.PathLike) -> Iterator[str]:
    """Yields the lines of a text file, with their ends: LF, CR LF or CR.

    Raises:
        UserError: The file can't be read, or a line is not text.
    """
    data = files.read_bytes(path)
    refuse_pointer(path, data)
    if data.startswith(UTF16_MARKS):
        try:
            lines: Iterable[str | bytes] = io.StringIO(decode(data), newline="")
        except UserError as error:
            raise UserError(f"{path} {error}") from None
    else:
        lines = re.findall(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", data)
    for number, line in enumerate(lines, start=1):
        with naming(path, number):
            yield plain(line)


def plain(line: str | bytes) -> str:
    """Returns a line of text; bytes are decoded first.

    Raises:
        UserError: It is not text. The message continues one that names the line.
    """
    text = decode(line) if isinstance(line, bytes) else line
    if "\0" in text:
        raise UserError("holds a null character, so it is not plain text: save the file as UTF-8")
    return text


@contextlib.contextmanager
def naming(table: epath.PathLike, line: int) -> Iterator[None]:
    """Prefixes errors about a row with the table and the line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{table}, line {line}: {error}") from None


class CsvRows:
    """The rows of a table with a header, read one by one, and only once.

    Cells are split at commas, semicolons or tabs, whichever there are most of in the header. Space
    around cells is ignored, and so are empty rows and empty columns at the end. A cell in double
    quotes may hold line breaks, but no line that looks like a row: that means that somebody forgot
    to close the quote.

    Attributes:
        columns: Names of the columns, in lower case and with "_" for spaces.
        delimiter: The character between cells.
    """

    def __init__(
        self,
        table: epath.PathLike,
        lines: Iterable[str],
        like_a_row: Callable[[Cells], object],
    ) -> None:
        """Reads the header.

        Args:
            table: What messages call the table.
            lines: Lines with their ends. No more are taken than the current row needs.
            like_a_row: Returns whether cells, some of which may be missing, look like a row.

        Raises:
            UserError: The header is not CSV, or has a column twice.
        """
        self._table = table
        self._like_a_row = like_a_row
        self._line = 0
        self._taken: list[str] = []  # the lines of the current row
        self._ended = False
        watched = self._watched(lines)
        header = next((line for line in watched if line.strip(_BLANK)), "")
        self.delimiter = max(_DELIMITERS, key=lambda delimiter: len(split(header, delimiter)))
        self._cells = csv.reader(
            itertools.chain([header], watched),
            delimiter=self.delimiter,
            skipinitialspace=True,
            strict=True,
        )
        self.columns: list[str] = []
        first = max(self._line, 1)
        names = [re.sub(r"[\s-]+", "_", name.lower()) for name in self._next(first)]
        while names and not names[-1]:
            names.pop()
        with naming(table, first):
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise UserError(f"the column {twice[0]!r} occurs twice: keep one of them")
        self.columns = names

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the number of each row's first line, and its cells, at most one per column.

        Raises:
            UserError: A row is wrong; the message names its line.
        """
        while not self._ended:
            self._taken.clear()
            first = self._line + 1
            cells = self._next(first)
            if len(self._taken) > 1:
                self._check_breaks(first)
            if any(cells[len(self.columns) :]):
                with naming(self._table, first):
                    raise UserError(
                        f"has {len(cells)} cells, but the header has {len(self.columns)}: put text "
                        f"with {_SPOKEN[self.delimiter]} in it between double quotes"
                    )
            if any(cells):
                yield first, cells[: len(self.columns)]

    def _watched(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._line += 1
            self._taken.append(line)
            yield line
        self._ended = True

    def _next(self, first: int) -> list[str]:
        """Returns the cells of the row that begins in line `first`; no cells at the end."""
        try:
            return [cell.strip() for cell in next(self._cells, ())]
        except csv.Error as error:
            if self._ended:
                fault = f"a double quote is opened here and never closed: close it ({_QUOTES})"
            elif "expected after" in str(error):
                last = self._line
                fault = (
                    f"more text follows the double quote that closes a cell in line {last}: "
                    f"close the cell only at its end ({_QUOTES})"
                )
            else:
                fault = f"is not CSV: {error} (is a double quote never closed?)"
            with naming(self._table, first):
                raise UserError(fault) from None

    def _check_breaks(self, first: int) -> None:
        """Refuses a cell of several lines that has swallowed a row."""
        for number, line in enumerate(self._taken[1:], start=first + 1):
            cells = dict(zip(self.columns, split(line, self.delimiter), strict=False))
            if self._like_a_row(cells):
                with naming(self._table, first):
                    raise UserError(
                        f"a double quote is opened here, and line {number} is within it, though "
                        f"it looks like a row: close the quote ({_QUOTES}), or write the text on "
                        "one line"
                    )


def split(text: str, delimiter: str) -> list[str]:
    """Returns the cells of the first row with any text, however they are quoted."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return next((cells for row in rows if any(cells := [cell.strip() for cell in row])), [])


def json_rows(table: epath.PathLike, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of each line that holds a JSON object, and the object.

    Raises:
        UserError: A line that is not blank holds anything else; the message names it.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            with naming(table, number):
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise UserError('a JSON object is needed, such as {"name": "value"}')
            yield number, row


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; duplicate keys, NaN and Infinity are refused.

    Raises:
        UserError: It is not JSON. The message continues one that names the text.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg} at position {error.pos}") from None
    except (ValueError, RecursionError) as error:  # too long a number, or lists nested too deeply
        raise UserError(f"is not JSON: {error}") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"the key {twice!r} occurs twice: keep one of them")
    return found


def _no_number(name: str) -> None:
    raise UserError(f"{name} is not a number in JSON: write a finite one")
