"""The manifest: a line of JSON for each output, which says how it was made.

Every process of a job appends to its own file, `manifest.jsonl`, `manifest-00001.jsonl` and so on,
and each line is on disk before the next one is written. At the end the files are merged into one
`manifest.jsonl`, in the table's order.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

FILE = "manifest.jsonl"
_PART = re.compile(r"manifest(-\d{5})?\.jsonl")

DONE, ERROR = "done", "error"
"""Values of `status`."""

TIME = "time"
"""The only field of a line that differs between two runs of a job."""

Entry = dict[str, Any]
"""A line: at least `id` and `status`; if done, also `output`, `bytes` and `fingerprint`."""


class Manifest:
    """The outputs in a folder, and those that one process adds; threads may share it."""

    def __init__(self, folder: epath.PathLike, part: int = 0) -> None:
        """Reads what earlier runs recorded; a line that was cut off is ignored.

        Args:
            folder: Folder of the outputs, local or remote.
            part: Number of this process.

        Raises:
            UserError: A file with a manifest's name is not a manifest.
        """
        self._folder = files.as_path(folder)
        self._file = self._folder / (FILE if part == 0 else f"manifest-{part:05d}.jsonl")
        self._lock = threading.Lock()
        self._own = _entries(self._file)
        self._found: dict[str, list[Entry]] = {}
        for file in _parts(self._folder):
            for entry in _entries(file):
                self._found.setdefault(entry["id"], []).append(entry)
        if self._file.exists() and self._file.read_bytes() != _lines(self._own):
            files.write_bytes(self._file, _lines(self._own))  # new lines must follow a whole one

    def finished(self, name: str, fingerprint: str) -> bool:
        """Returns whether an output was made from the same inputs, and is there in full."""
        return any(
            entry["status"] == DONE
            and entry.get("fingerprint") == fingerprint
            and _size(self._folder / entry["output"]) == entry["bytes"]
            for entry in self._found.get(name, ())
        )

    def knows(self, name: str) -> bool:
        """Returns whether an earlier run made the output, perhaps from other inputs."""
        return any(entry["status"] == DONE for entry in self._found.get(name, ()))

    def add(self, entry: Entry) -> None:
        """Records one output; the line is on disk when this returns.

        Raises:
            UserError: The line can't be written.
        """
        with self._lock:
            self._own.append(entry)
            if "://" in os.fspath(self._file):  # object stores can't append
                files.write_bytes(self._file, _lines(self._own))
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab") as file:
                file.write(_lines([entry]))
                file.flush()
                os.fsync(file.fileno())

    def compact(self, order: Sequence[str]) -> dict[str, Entry]:
        """Merges the files of all processes into one: the last line for each output, in `order`.

        Outputs of other tables in the folder follow. Must be called by one process, when all are
        done.

        Returns:
            The lines, by output.

        Raises:
            UserError: The file can't be written.
        """
        parts = _parts(self._folder)
        latest: dict[str, Entry] = {}
        for part in parts:
            for entry in _entries(part):
                before = latest.get(entry["id"], entry)
                if entry[TIME]["finished"] >= before[TIME]["finished"]:
                    latest[entry["id"]] = entry
        others = [name for name in latest if name not in set(order)]
        ordered = [latest[name] for name in (*order, *others) if name in latest]
        files.write_bytes(self._folder / FILE, _lines(ordered))
        for part in parts:
            if part.name != FILE:
                part.unlink()
        return {entry["id"]: entry for entry in ordered}


def read_manifest(folder: epath.PathLike) -> dict[str, Entry]:
    """Returns the lines of a folder's `manifest.jsonl`, by output."""
    return {entry["id"]: entry for entry in _entries(files.as_path(folder) / FILE)}


def failure(facts: Mapping[str, Any], error: str) -> Entry:
    """Returns the line of an output that can't be made."""
    return {**facts, "status": ERROR, "error": error, TIME: {"finished": time.time()}}


def fingerprint(made_from: Mapping[str, Any]) -> str:
    """Returns a hash of everything that an output depends on."""
    text = json.dumps(made_from, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parts(folder: epath.Path) -> list[epath.Path]:
    if not folder.exists():
        return []
    return sorted(file for file in folder.iterdir() if _PART.fullmatch(file.name))


def _entries(file: epath.Path) -> list[Entry]:
    data = file.read_bytes() if file.exists() else b""
    found = []
    *whole, _ = lines = data.split(b"\n")
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off when the process or the machine went down, or not UTF-8
            continue
    ours = all(isinstance(said, dict) and {"id", "status", TIME} <= set(said) for said in found)
    if not ours or (any(whole) and not found):
        raise UserError(
            f"{file} is in the way: a run would record its outputs there, and no run wrote this "
            "file; move it, or give another folder"
        )
    return found


def _lines(entries: Iterable[Entry]) -> bytes:
    # A file name that is not UTF-8 has lone surrogates, which JSON can only escape.
    return b"".join(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in entries)


def _size(file: epath.Path) -> int | None:
    try:
        return file.stat().length
    except OSError:
        return None
