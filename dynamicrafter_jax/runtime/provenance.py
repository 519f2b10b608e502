"""Records of how a video or a model was made, with enough detail to make it again."""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

_PACKAGE = "dynamicrafter-jax"
_WRITTEN_BY = "written_by"
_PACKAGES = (
    _PACKAGE,
    "array_record",
    "av",
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "ml_collections",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pillow",
    "transformers",
)


def environment() -> dict[str, Any]:
    """Returns package versions, the git revision of the code, and the devices."""
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "git_revision": git_revision(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.local_devices()],
        "platform": platform.platform(),
    }


def record_beside(output: epath.PathLike) -> epath.Path:
    """Returns the path of the record next to a video: `cat.mp4.json` for `cat.mp4`.

    If that would be too long for a name, it is the start of the video's name, and a hash of it.
    """
    path = files.as_path(output)
    name = f"{path.name}.json"
    if len(os.fsencode(name)) > files.NAME_BYTES:
        name = f"{files.shortened(path.name)}.json"
    return path.with_name(name)


def write_record(path: epath.PathLike, facts: Mapping[str, Any]) -> None:
    """Writes the record of a run as JSON; see `check_record` and `files.write_json`."""
    check_record(path)
    files.write_json(path, {_WRITTEN_BY: _PACKAGE, **facts})


def check_record(path: epath.PathLike) -> None:
    """Checks that `path` is free, or a record, which may be replaced.

    Raises:
        UserError: There is a file that no run wrote.
    """
    path = files.as_path(path)
    try:
        if not path.exists():
            return
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get(_WRITTEN_BY) != _PACKAGE:
        raise UserError(
            f"{path} is in the way: a run would write its record there, and no run wrote this "
            "file; move it, or give another output"
        )


def check_places(videos: Sequence[epath.PathLike], *, named: bool) -> None:
    """Checks, before a run, that it can write its records and replaces only its own files.

    Args:
        videos: The videos that it writes.
        named: Whether the user named the videos, which may then replace anything.

    Raises:
        UserError: A record can't be written, or a file that no run wrote is in the way.
    """
    for video in videos:
        record = record_beside(video)
        files.check_writable(record)
        check_record(record)
        if not named and files.as_path(video).is_file() and not record.exists():
            raise UserError(f"{video} is there, and no run wrote it: move it, or give another name")


def sha256_of(path: str | epath.Path) -> str:
    """Returns the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def git_revision() -> str | None:
    """Returns the commit of the clone this code runs from, marked "-dirty" if it was changed."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def peak_memory() -> int:
    """Returns the peak of bytes used: on a device if it says so, otherwise by this process."""
    in_use = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    if in_use:
        return max(in_use)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
