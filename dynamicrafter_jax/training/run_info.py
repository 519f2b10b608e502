"""`run.json`: what a run was made with, one entry for each time that it was started."""

import datetime
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dynamicrafter_jax import files, provenance
from dynamicrafter_jax.config import config_to_json
from dynamicrafter_jax.errors import UserError

FILE = "run.json"


def record_session(
    workdir: epath.PathLike,
    *,
    config: ConfigDict,
    weights: Sequence[Mapping[str, Any]],
    mesh: Mesh,
    first_step: int = 0,
) -> None:
    """Adds this start of the run to `run.json`, whole or not at all; one process does it for all.

    Args:
        workdir: Folder of the run, local or remote.
        config: The full config.
        weights: Name and SHA-256 of the files that the run started from, as `weights.origin`
            gives them; none for random weights.
        mesh: The devices and how they are laid out.
        first_step: Steps done before.

    Raises:
        UserError: The file can't be read or written.
    """
    path = files.as_path(workdir) / FILE
    sessions = read_sessions(workdir) if path.exists() else []
    sessions.append(describe_session(config, weights, mesh, first_step))
    files.write_json(path, {"sessions": sessions})


def read_sessions(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the entries of `run.json`, oldest first.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = files.as_path(workdir) / FILE
    data = files.read_bytes(path)
    try:
        sessions = json.loads(data)["sessions"]
    except (ValueError, KeyError, TypeError):
        sessions = None
    if not isinstance(sessions, list):
        raise UserError(f"{path} does not list the sessions of a run: move it away to go on")
    return sessions


def describe_session(
    config: ConfigDict, weights: Sequence[Mapping[str, Any]], mesh: Mesh, first_step: int
) -> dict[str, Any]:
    """Returns an entry of `run.json`; see `record_session`."""
    environment = provenance.environment()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "first_step": first_step,
        "command": sys.argv,
        "host": platform.node(),
        "git_revision": environment["git_revision"],
        "processes": jax.process_count(),
        "devices": Counter(
            f"{device.platform}:{device.device_kind}" for device in mesh.devices.flat
        ),
        "mesh": dict(mesh.shape),
        "weights": [dict(source) for source in weights],
        "versions": environment["versions"],
        "platform": environment["platform"],
        "config": config_to_json(config),
    }
