"""Files that are whole or absent: written beside their place, then renamed.

Paths may be local or remote (`gs://`, `s3://`, `az://`, `hf://`), through `etils.epath`.
"""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from dynamicrafter_jax.errors import UserError


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns `path` as an `epath.Path`, with `~` expanded.

    Raises:
        UserError: The path is of a kind that can't be opened, such as `https://`.
    """
    if "\0" in os.fspath(path):
        raise UserError(f"{os.fspath(path)!r} is not a path: it holds a null character")
    try:
        return epath.Path(path).expanduser()
    except KeyError:
        scheme = os.fspath(path).split("://")[0]
        raise UserError(
            f"{path} is a URL, and {scheme}:// is not supported; copy the file to this machine "
            "(download it first), and give its path"
        ) from None


def read_bytes(path: epath.PathLike) -> bytes:
    """Returns what the file at `path` holds.

    Raises:
        UserError: It is missing, empty, a directory or can't be read.
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
    """Returns the array of a `.npy` file; pickled objects are refused, never executed.

    Raises:
        UserError: The file can't be read, or is not one plain array.
    """
    data = read_bytes(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path} is not a whole .npy file: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds several arrays: save a single one with numpy.save")
    return array


@contextlib.contextmanager
def atomic(path: epath.PathLike) -> Iterator[epath.Path]:
    """Gives a temporary path beside `path`, which takes its place if the block succeeds.

    The block makes a file or a folder there. A file replaces an older file; a folder takes the
    place of nothing or of an empty folder, and never of one that holds something. If the block
    fails, the temporary is removed and what was at `path` stays. Missing parents are made. A
    symbolic link stays, and what it points to is replaced.

    The temporary's name starts with a dot and ends in `.tmp`, whatever the extension of `path`,
    so that nothing that looks for finished files by their extension picks it up.

    Raises:
        UserError: The disk or the file system refused.
    """
    destination = _destination(as_path(path))
    temporary = _beside(destination)
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
    """Writes `value` as indented JSON; see `write_bytes`. Not-a-number is no JSON and raises."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 reaches us with lone surrogates, which JSON can only escape.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Writes `array` in NumPy's `.npy` format; see `write_bytes`."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def check_writable(path: epath.PathLike, *, folder: bool = False) -> None:
    """Makes sure, before a long computation, that `atomic(path)` will be able to write.

    Permission bits say little (root ignores them, a mount may be read-only), so a file of the
    right name is written for trial, and removed. Missing parents are tried out too, and not kept.

    Args:
        path: The file, or folder, to be written.
        folder: Whether a folder will be made at `path`: it must be new or empty.

    Raises:
        UserError: It can't be written; the message says why.
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
        trial = _beside(existing / "trial")
        try:
            file = _beside(trial / destination.relative_to(existing))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
        finally:
            _remove(trial)


def _check_place(path: epath.PathLike, destination: epath.Path, folder: bool) -> None:
    """Refuses to replace a directory by a file, a file by a folder, or a folder that is in use."""
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
        # The system's own rename takes the place of an empty folder and refuses a filled one,
        # in one step that nothing can come between.
        os.rename(temporary, destination)
    else:
        temporary.rename(destination)


def _destination(path: epath.Path) -> epath.Path:
    """What a write to `path` replaces: links are followed, devices refused."""
    if not _is_local(path):
        return path
    real = epath.Path(os.path.realpath(path))
    if real.exists() and not os.path.isfile(real) and not real.is_dir():
        raise UserError(f"{path} is a device or a pipe: give the path of a file")
    return real


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _beside(path: epath.Path) -> epath.Path:
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"


def _remove(path: epath.Path) -> None:
    # This runs while another error may be on its way: that one matters more than a leftover.
    with contextlib.suppress(OSError, ImportError):
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _readable_refusal(path: epath.PathLike) -> Iterator[None]:
    """Says in one line why the system did not write to `path`."""
    try:
        yield
    except (OSError, ImportError) as error:
        raise UserError(
            f"{path} can't be written: {_reason(error)}; "
            "check its directory and the disk, or give another path"
        ) from error


def _reason(error: BaseException) -> str:
    """One line: the system's words if there are any."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__
