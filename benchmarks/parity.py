"""Compares tables, networks and whole runs with the numbers of the PyTorch release.

    make parity                                 everything
    python benchmarks/parity.py --only=tiny     all but the networks at full size

It prints the tables as they are made and puts them into docs/parity.md, between each part's marks.
The exit status is 1 if a target was missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent / "tests"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Compiled runs in bfloat16 then round every result, as the networks do that run by themselves.
os.environ.setdefault("XLA_FLAGS", "--xla_allow_excess_precision=false")
# Python would run ahead of the computation, and hold memory for layers that are not reached yet.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

from comparisons import full_network_rows, host_rows, run_rows, small_network_rows
from measures import Row
from timing import made_with

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"

# The columns of all tables, with how a row fills them and how wide they are.
COLUMNS: dict[str, tuple[int, Callable[[Row], str]]] = {
    "what": (58, lambda row: row.name),
    "error": (7, lambda row: f"{row.error:.1e}" if row.error else "0"),
    "target": (12, lambda row: target_of(row)),
    "bfloat16": (8, lambda row: "" if row.psnr is None else f"{row.psnr:.1f} dB"),
    "worst layer": (38, lambda row: row.worst_layer),
    "seconds": (7, lambda row: "" if row.seconds is None else f"{row.seconds:.0f}"),
    "memory": (8, lambda row: "" if row.memory is None else f"{row.memory / 2**30:.1f} GiB"),
}
ALL = tuple(COLUMNS)


class Table(NamedTuple):
    """A table whose rows are computed when they are iterated over."""

    heading: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterable[Row]]


# Full size first, while this process is small itself.
PARTS = {
    "full": (Table("Networks at full size", ALL, full_network_rows),),
    "tiny": (
        Table("Schedules, tokens, preprocessing", ALL[:3], host_rows),
        Table("Small networks", ALL[:5], small_network_rows),
        Table("Whole runs of the small models", ALL[:5], run_rows),
    ),
}


def main() -> int:
    """Makes the requested parts and returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare with numbers of the PyTorch release.")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    parts = [arguments.only] if arguments.only else list(PARTS)
    missed = 0
    try:
        files.check_writable(arguments.output)
        for part in parts:
            replace_part(arguments.output, part)
        for part in parts:
            started = time.perf_counter()
            tables = [make_table(table) for table in PARTS[part]]
            minutes = (time.perf_counter() - started) / 60
            made = f"{made_with('flax', 'numpy')} It took {minutes:.0f} minutes."
            text = "\n\n".join([made, *(text for text, _ in tables)])
            files.write_bytes(arguments.output, replace_part(arguments.output, part, text))
            missed += sum(count for _, count in tables)
    except UserError as error:
        parser.error(str(error))
    sys.stdout.write(f"{missed} targets were missed.\n" if missed else "Every target was met.\n")
    return 1 if missed else 0


def make_table(table: Table) -> tuple[str, int]:
    """Prints a table row by row; returns it as Markdown, and the number of missed targets."""
    columns = {name: COLUMNS[name] for name in table.columns}
    lines, missed = [], 0

    def add(*cells: str) -> None:
        widths = (width for width, _ in columns.values())
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |" if cells else "")
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()

    sys.stdout.write(f"\n{table.heading}\n\n")
    add(*columns)
    add(*("-" * width for width, _ in columns.values()))
    for row in table.rows():
        add(*(fill(row) for _, fill in columns.values()))
        missed += not row.passed
    return "\n".join([f"### {table.heading}", "", *lines]), missed


def target_of(row: Row) -> str:
    """Returns a row's target as text, marked if it was missed."""
    target = f"{row.target:.0e}" if row.target else "exact"
    return target if row.passed else f"{target} missed"


def replace_part(path: Path, part: str, text: str | None = None) -> bytes:
    """Returns the document at `path`, with `text` (unless None) between the marks of a part.

    Raises:
        UserError: The document is missing or has no such marks.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    document = files.read_bytes(path).decode()
    head, found, rest = document.partition(begin)
    old, found_end, tail = rest.partition(end)
    if not (found and found_end):
        raise UserError(f"{path} needs lines {begin} and {end}, for the tables to go between")
    new = old if text is None else f"\n\n{text}\n\n"
    return f"{head}{begin}{new}{end}{tail}".encode()


if __name__ == "__main__":
    sys.exit(main())
