"""Atomic files: written under a temporary name in the same folder, then renamed.

Paths may be local or remote (`gs://`, `s3://`, `az://`, `hf://`), through `etils.epath`.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

NAME_BYTES = 255
"""The longest name of a file on nearly every file system, in bytes."""

TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
"""The name of a temporary file; the group is the `shortened` final name."""

# Longer names are shortened in temporary names, which add to them.
_KEPT_BYTES = 100


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns `path` as an `epath.Path`, with `~` expanded.

    Raises:
        UserError: The path can't be opened, such as one that starts with `https://`.
    """
    if "\0" in os.fspath(path):
        raise UserError(f"{os.fspath(path)!r} is not a path: it holds a null character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UserError(f"{os.fspath(path)!r} is not a path: it holds half a character") from None
    try:
        return epath.Path(path).expanduser()
    except KeyError:
        scheme = os.fspath(path).split("://")[0]
        raise UserError(
            f"{path} is a URL, and {scheme}:// is not supported: download the file to this "
            "machine, and give its path"
        ) from None


def utf8_path(path: epath.PathLike) -> epath.Path:
    """Returns a path to the same file for libraries that accept only UTF-8 paths.

    Names on disk may be any bytes. If some are not UTF-8, the result leads through a symbolic link
    in a temporary folder, which is removed when the process ends. Folders and files with such names
    must exist.
    """
    path = as_path(path)
    parts = path.parts
    others = [i for i, part in enumerate(parts) if part != part.encode(errors="ignore").decode()]
    if not others:
        return path
    named, rest = parts[: others[-1] + 1], parts[others[-1] + 1 :]
    return epath.Path(_link(os.path.abspath(os.path.join(*named))), *rest)


@functools.cache
def _link(place: str) -> str:
    link = os.path.join(_links().name, hashlib.sha256(os.fsencode(place)).hexdigest()[:16])
    os.symlink(place, link)
    return link


@functools.cache
def _links() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def read_bytes(path: epath.PathLike) -> bytes:
    """Returns the contents of a file.

    Raises:
        UserError: The file is missing, empty or a directory, or can't be read.
    """
    path = as_path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory: give the path of a file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except (OSError, ImportError) as error:
        raise UserError(f"{path} can't be read: {_reason(error)}") from error
    if not data:
        raise UserError(f"{path} is empty (0 bytes): make or copy it again")
    return data


def read_array(path: epath.PathLike) -> np.ndarray:
    """Returns the array in a `.npy` file; pickled objects are refused, never executed.

    Raises:
        UserError: The file can't be read, or is not one plain array.
    """
    data = read_bytes(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        refuse_placeholder(path, data)
        raise UserError(f"{path} is not a whole .npy file: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds several arrays: save a single one with numpy.save")
    return array


@contextlib.contextmanager
def atomic(path: epath.PathLike) -> Iterator[epath.Path]:
    """Gives a temporary path next to `path`, which is renamed to it if the block succeeds.

    The block makes a file or a folder there. A file replaces an older file; a folder may replace an
    empty folder, but never one with contents. If the block fails, what it made is removed and
    `path` is left as it was. Missing parents are made. If `path` is a symbolic link, its target is
    replaced.

    The temporary name starts with a dot and ends in `.tmp`, whatever the extension of `path`, so
    that code that looks for finished files by extension does not pick it up. It is short, however
    long the name of `path` is.

    Raises:
        UserError: Writing fails.
    """
    destination = _destination(as_path(path))
    temporary = beside(destination)
    with _readable_refusal(path):
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _check_place(path, destination, folder=temporary.is_dir())
            _put_in_place(temporary, destination)
        finally:
            _remove(temporary)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a whole file, or raises `UserError` and leaves what was there."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; see `write_bytes`. NaN raises, since JSON lacks it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 has lone surrogates, which JSON can only escape.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Writes `array` in NumPy's `.npy` format; see `write_bytes`."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def check_writable(path: epath.PathLike, *, folder: bool = False) -> None:
    """Checks, before a long computation, that `atomic(path)` will be able to write.

    Permission bits say little (root ignores them, a mount may be read-only), so a file with the
    right name is written as a trial, and removed. Missing parents are tried too, and not kept.

    Args:
        path: The file or folder to be written.
        folder: Whether a folder will be made at `path`, which must then be new or empty.

    Raises:
        UserError: `path` can't be written; the message says why.
    """
    destination = _destination(as_path(path))
    with _readable_refusal(path):
        _check_place(path, destination, folder)
        existing = destination.parent
        if _is_local(destination):
            while not existing.exists():
                existing = existing.parent
            if not existing.is_dir():
                raise UserError(f"{path} can't be written: {existing} is a file, not a directory")
        trial = beside(existing / "trial")
        try:
            file = trial / destination.relative_to(existing)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
        finally:
            _remove(trial)


def check_apart(
    written: Sequence[tuple[str, epath.PathLike]], read: Sequence[tuple[str, epath.PathLike]]
) -> None:
    """Checks that no file is written twice, or over one that is read.

    Args:
        written: Files to write, each as its name in messages and its path.
        read: Files to read, likewise.

    Raises:
        UserError: Two paths lead to the same file.
    """
    # Some disks ignore case, which can't be found out for a file that does not exist yet.
    places: dict[str, str] = {}
    for name, path in written:
        place = os.fspath(_destination(as_path(path))).casefold()
        if place in places:
            raise UserError(
                f"{name} and {places[place]} are the same file, {path}: give different paths"
            )
        places[place] = name
        for other, source in read:
            if _are_one(as_path(path), as_path(source)):
                raise UserError(f"{name} would replace {other}, {source}: give another path")


def _are_one(path: epath.Path, other: epath.Path) -> bool:
    if _is_local(path) and _is_local(other):
        return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)
    return path == other


def _check_place(path: epath.PathLike, destination: epath.Path, folder: bool) -> None:
    """Refuses to replace a directory with a file, a file with a folder, or a folder in use."""
    if not destination.exists():
        return
    if not folder:
        if destination.is_dir():
            raise UserError(f"{path} is a directory: give the path of a file")
        return
    if not destination.is_dir():
        raise UserError(f"{path} is a file, which a folder can't replace: give another path")
    # `epath` hides names that end in "~", and a folder of backups is not empty.
    if os.listdir(destination) if _is_local(destination) else any(destination.iterdir()):
        raise UserError(f"{path} is a folder that is not empty: give a new or an empty one")
    if _is_local(destination) and os.path.ismount(destination):
        raise UserError(f"{path} is a mount point: give a new folder inside it")


def _put_in_place(temporary: epath.Path, destination: epath.Path) -> None:
    if not temporary.is_dir():
        temporary.replace(destination)
    elif _is_local(destination):
        # The system's own rename replaces an empty folder and refuses one with contents, in a
        # single atomic step.
        os.rename(temporary, destination)
    else:
        temporary.rename(destination)


def _destination(path: epath.Path) -> epath.Path:
    """Returns what a write to `path` replaces; links are followed, and devices refused."""
    if not _is_local(path):
        return path
    real = epath.Path(os.path.realpath(path))
    if real.exists() and not os.path.isfile(real) and not real.is_dir():
        raise UserError(f"{path} is a device or a pipe: give the path of a file")
    return real


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def shortened(name: str) -> str:
    """Returns the form of a file name used in temporary names: whole, or its start and a hash."""
    data = os.fsencode(name)
    if len(data) <= _KEPT_BYTES:
        return name
    return f"{name[: _KEPT_BYTES // 4]}-{hashlib.sha256(data).hexdigest()[:16]}"


def beside(path: epath.Path) -> epath.Path:
    """Returns a new name for a temporary file in the folder of `path`; see `atomic`."""
    return path.parent / f".{shortened(path.name)}.{secrets.token_hex(4)}.tmp"


def _remove(path: epath.Path) -> None:
    # Another error may be propagating, and matters more than a leftover.
    with contextlib.suppress(OSError, ImportError):
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _readable_refusal(path: epath.PathLike) -> Iterator[None]:
    """Turns the system's errors into one line that says why `path` can't be written."""
    try:
        yield
    except (OSError, ImportError) as error:
        raise UserError(
            f"{path} can't be written: {_reason(error)}; "
            "check its directory and the disk, or give another path"
        ) from error


def _reason(error: BaseException) -> str:
    """Returns an error as one line, in the system's words if there are any."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__
