"""Shared parts of the speed benchmarks: times, the peak of matrix products, tables and JSON."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.training.throughput import peak_flops

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"

# What a turn takes at least.
_TURN_SECONDS = 0.2

# Sides of the matrices that the peak is measured with.
_ACCELERATOR_SIDE, _CPU_SIDE = 8192, 2048


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Returns the seconds per call of each function, for each turn.

    Functions take turns, so that the machine is in the same state for all. Short ones are called
    many times in a turn, so that it does not matter if threads of the previous one are still busy.

    Args:
        functions: Functions that finish their work before they return; warm them up beforehand.
        repeats: Number of turns for each.
    """

    def turn(function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    calls = {
        name: max(1, round(_TURN_SECONDS / turn(function, 1)))
        for name, function in functions.items()
    }
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            found[name].append(turn(function, calls[name]))
    return found


def seconds(function: Callable[[], object]) -> float:
    """Returns the seconds of one call of a function that finishes its work before it returns."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul_peak(dtype: str, repeats: int = 10) -> float:
    """Measures the FLOP/s of one device for a large matrix product.

    Args:
        dtype: Type of the matrices. float32 products use the precision currently set.
        repeats: Number of products; the fastest one counts.
    """
    side = _CPU_SIDE if jax.default_backend() == "cpu" else _ACCELERATOR_SIDE
    chained = 1 if jax.default_backend() == "cpu" else 8  # so that a call's overhead is lost in it

    @jax.jit
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(chained):
            a = a @ b
        return a

    a = jnp.full((side, side), 1 / side, dtype)
    jax.block_until_ready(product(a, a))
    calls = {"": lambda: jax.block_until_ready(product(a, a))}
    return chained * 2 * side**3 / min(alternate(calls, repeats)[""])


def utilisation(flops: float, seconds: float, measured_peak: float, devices: int) -> dict[str, Any]:
    """Returns a program's arithmetic, and its share of the devices' peak.

    Args:
        flops: Operations of the program, over all devices, as `product_flops` counts them.
        seconds: Time that it took.
        measured_peak: See `matmul_peak`.
        devices: Number of devices that it ran on.
    """
    rate = flops / seconds / devices
    published = peak_flops(jax.devices()[0].device_kind)
    return {
        "model_tflop": flops / 1e12,
        "tflops_per_device": rate / 1e12,
        "measured_peak_tflops": measured_peak / 1e12,
        "utilisation": rate / measured_peak,
        "published_peak_tflops": published and published / 1e12,
        "utilisation_of_published_peak": published and rate / published,
    }


def utilisation_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of a table that show what `utilisation` returned."""
    rows = [
        ["products", f"{found['model_tflop']:.4g} TFLOP"],
        ["speed of a device", f"{found['tflops_per_device']:.3g} TFLOP/s"],
        ["its measured matmul peak", f"{found['measured_peak_tflops']:.3g} TFLOP/s"],
        ["utilisation of it", f"{found['utilisation']:.1%}"],
    ]
    if published := found["published_peak_tflops"]:
        part = f"{found['utilisation_of_published_peak']:.1%}"
        rows.append([f"utilisation of the published {published:.4g} TFLOP/s", part])
    return rows


def memory_kind() -> str:
    """Returns what `provenance.peak_memory` refers to."""
    stats = jax.devices()[0].memory_stats()
    told = stats is not None and "peak_bytes_in_use" in stats
    return "of the device" if told else "of the process"


def made_with(*packages: str) -> str:
    """Returns the line above a table: date, revision of the code, versions, kind of machine.

    Args:
        *packages: Packages to name besides jax; those that are not installed are left out.
    """
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return (
        f"Made on {date.today()} at revision {revision()} with {', '.join(versions)} on {machine}, "
        f"{jax.devices()[0].device_kind}."
    )


def revision() -> str:
    """Returns the short hash of the code's commit, and whether the code has changed since."""
    commit, _, changed = (provenance.git_revision() or "unknown").partition("-")
    # A table that was just written into a document changes no code.
    code = ["git", "-C", str(DOCUMENT.parent), "diff", "--quiet", "HEAD", "--", ":/", ":/!docs"]
    if changed and subprocess.run(code, check=False).returncode:
        return f"{commit[:10]} with changes"
    return commit[:10]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table with its columns aligned."""
    lines = [columns, ["-" * len(column) for column in columns], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines[1] = ["-" * width for width in widths]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def add_outputs(parser: argparse.ArgumentParser, document: Path = DOCUMENT) -> None:
    """Defines the flags for where to write results besides the screen."""
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--write_docs", action="store_true", help=f"put the table into {document}")


def write_json(path: str | Path, measured: Any) -> None:
    """Writes measurements to a file."""
    files.write_bytes(path, (json.dumps(measured, indent=1) + "\n").encode())


def write_docs(part: str, text: str, document: Path = DOCUMENT) -> None:
    """Puts text between the marks of a part of the document.

    Raises:
        UserError: The document has no such marks.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    head, found, rest = files.read_bytes(document).decode().partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end):
        raise UserError(f"{document} needs lines {begin} and {end}, for the table to go between")
    files.write_bytes(document, f"{head}{begin}\n\n{text}\n\n{end}{tail}".encode())


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
