"""The folder of a run: claiming it, recording how it was started, and opening its checkpoints.

- `config.json`: the config, which a resumed run must share.
- `run.json`: one entry for each time that the run was started or resumed.

Checkpoints are next to these files.
"""

import datetime
import json
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.config import config_from_json, config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.training import checkpoints, freezing
from dynamicrafter_jax.training.distillation import TEACHER, sections_of
from dynamicrafter_jax.weights import stored
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.tensors import list_names

FILE = "config.json"
SESSIONS_FILE = "run.json"

FIXED = ("sampling.height", "sampling.width", "sampling.num_frames")
"""Fields that a resumed run must share although they match `CHANGEABLE`."""

CHANGEABLE = (
    "name",
    "mesh.*",  # where it runs
    "data.source",  # the data may have moved
    "data.videos",
    "data.validation",
    "data.workers",
    "data.prefetch",
    "sampling.*",  # sample videos
    "train.steps",  # how long it runs
    "train.accumulation",  # the same sums in other parts, for memory
    "train.remat",
    "train.log_every",  # what is reported and kept
    "train.checkpoint_every",
    "train.keep_*",
    "train.validat*",
    "train.sample_*",
    "train.profile_*",
)
"""Fields that a resumed run may change, with `*` for anything; it must share all others."""

DATA = ("data.source", "data.videos")
"""Changeable fields that turn it into another run unless the videos are the same."""

_MESSAGE_BYTES = 4096


def check_workdir(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Checks, in all processes alike, that `workdir` can be the folder of this run.

    It writes nothing, so other problems can be found before anything is written.

    Args:
        workdir: The folder, local or remote; it need not exist. The folder of a run that has no
            checkpoint yet counts as new.
        config: The config of the run.

    Raises:
        UserError: The folder holds checkpoints of another config, holds something else, or can't be
            written to.
    """
    path = stored.absolute(workdir)
    _as_first(lambda: _check(path, config))


def claim_workdir(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Makes `workdir` the folder of this run, after the same checks as `check_workdir`.

    `config.json` is written in a new workdir, and again if fields have changed.

    Raises:
        UserError: As in `check_workdir`, or not all processes see the folder.

    Warns:
        UserWarning: The data of the run may have changed.
    """
    path = stored.absolute(workdir)
    _as_first(lambda: _claim(path, config))
    if jax.process_count() == 1:
        return
    sees = multihost_utils.process_allgather(np.int32((path / FILE).exists()))
    if not np.all(sees):
        blind = list_names(str(process) for process in np.flatnonzero(sees == 0))
        raise UserError(
            f"{path} is not the same folder for all processes ({blind} can't see {FILE}): "
            "give a folder on a file system that they share, or a bucket"
        )


def record_session(
    workdir: epath.PathLike,
    *,
    config: ConfigDict,
    weights: Sequence[Mapping[str, Any]],
    mesh: Mesh,
    first_step: int = 0,
) -> None:
    """Adds this start of the run to `run.json`, atomically; one process does it for all.

    Args:
        workdir: Folder of the run, local or remote.
        config: The full config.
        weights: Name and SHA-256 of the files that the run started from, as from
            `weights.load.origin`; empty for random weights.
        mesh: The devices and their layout.
        first_step: Steps done before.

    Raises:
        UserError: The file can't be read or written.
    """
    path = files.as_path(workdir) / SESSIONS_FILE
    sessions = read_sessions(workdir) if path.exists() else []
    sessions.append(describe_session(config, weights, mesh, first_step))
    files.write_json(path, {"sessions": sessions})


def read_sessions(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the entries of `run.json`, oldest first.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = files.as_path(workdir) / SESSIONS_FILE
    data = files.read_bytes(path)
    try:
        sessions = json.loads(data)["sessions"]
    except (ValueError, KeyError, TypeError):
        sessions = None
    if not isinstance(sessions, list):
        raise UserError(f"{path} does not list the sessions of a run: move it away to resume")
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


@dataclass(frozen=True)
class Run:
    """A complete checkpoint of a run, which has not been read yet.

    Attributes:
        config: Config of the run.
        readers: For each network, a function that reads its parameters onto one device.
        sources: Name and SHA-256 of the files that the run started from.
        name: Name of the run's folder.
        step: Step of the checkpoint.
        averaged: Whether the parameters are the averaged ones.
        has_averages: Whether the checkpoint has averaged parameters.
    """

    config: ConfigDict
    readers: Mapping[str, Callable[[], PyTree[Array]]]
    sources: list[dict[str, Any]]
    name: str
    step: int
    averaged: bool
    has_averages: bool

    @property
    def parameters(self) -> Literal["averaged", "last"]:
        """Which parameters they are, in a word."""
        return "averaged" if self.averaged else "last"

    @property
    def taken(self) -> str:
        """Which parameters they are, and how to get the others, in a few words."""
        if self.averaged:
            return f"averaged parameters of step {self.step} (--noaveraged takes the last ones)"
        others = (
            "--averaged takes the averaged ones" if self.has_averages else "it keeps no averages"
        )
        return f"last parameters of step {self.step} ({others})"


def open_run(path: epath.PathLike, *, step: int | None = None, averaged: bool | None = None) -> Run:
    """Finds a checkpoint of a run.

    Args:
        path: Folder of the run.
        step: Which checkpoint; None for the newest.
        averaged: Whether to take the averaged parameters; None takes them if there are any.

    Raises:
        UserError: The folder holds no run, no such checkpoint or no averages, or is damaged.
    """
    root = stored.absolute(path)
    described = files.read_bytes(root / FILE)
    try:
        config = config_from_json(json.loads(described))
    except ValueError as error:
        raise UserError(f"{root / FILE} is damaged: copy it from a backup") from error
    place = checkpoints.find_step(root, step)
    has_ema = (place / "ema").exists()
    if averaged and not has_ema:
        raise UserError(f"{place} has no averaged parameters: leave out --averaged")
    averaged = has_ema and averaged is not False

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        nn.meta.unbox(
            sections_of(abstract_params(config), config.train.get("objective", "denoise"))
        ),
    )
    parts = dict(
        zip(
            (place / ("ema" if averaged else "params"), root / checkpoints.FROZEN),
            freezing.split(abstract, config.train.trainable),
            strict=True,
        )
    )
    parts = {file: tree for file, tree in parts.items() if tree}
    for file, tree in parts.items():
        try:
            misfit = stored.misfit(file, tree)
        except stored.Damaged as error:
            raise UserError(f"{file} is damaged: {error}") from error
        if misfit:
            raise UserError(f"{file} does not fit the config of its run: {misfit}")
    readers = {name: partial(_read_network, parts, name) for name in abstract if name != TEACHER}
    return Run(
        config,
        readers,
        read_sessions(root)[0]["weights"],
        name=root.name,
        step=int(place.name),
        averaged=averaged,
        has_averages=has_ema,
    )


def _read_network(parts: Mapping[epath.Path, PyTree], network: str) -> PyTree[Array]:
    """Reads a network, which may be split over two files."""
    found: dict[str, Any] = {}
    for file, tree in parts.items():
        if network not in tree:
            continue
        try:
            part = stored.read(file, {network: tree[network]})
        except stored.Damaged as error:
            raise UserError(f"{file} is damaged: {error}") from error
        found = freezing.join(found, part)
    return found[network]


def _as_first(act: Callable[[], object]) -> None:
    """Calls `act` in process 0, and raises its error in all, which would otherwise wait for it."""
    if jax.process_count() == 1:
        act()
        return
    refusal = ""
    if jax.process_index() == 0:
        try:
            act()
        except UserError as error:
            refusal = str(error)
    if refusal := _told_by_first(refusal):
        raise UserError(refusal)


def _claim(path: epath.Path, config: ConfigDict) -> None:
    old = _check(path, config)
    changes = {} if old is None else _changes(old, config_to_json(config))
    if old is None or changes:
        files.write_json(path / FILE, config_to_json(config))
    for name in DATA:
        if name in changes and checkpoints.saved_steps(path):
            warnings.warn(
                f"{name} {changes[name]}: unless the videos are the same, in the same order, "
                "this is no longer the same run",
                stacklevel=2,
            )


def _check(path: epath.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the config of an existing run, or None; see `check_workdir`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"the workdir {path} is a file: give a folder")
    files.check_writable(path / FILE)
    has_steps = bool(checkpoints.saved_steps(path))
    if not (path / FILE).exists():
        if has_steps:
            raise UserError(
                f"{path} holds checkpoints but no {FILE} with their config: "
                f"copy {FILE} back, or give a new workdir"
            )
        return None
    old = _read(path / FILE)
    changes = _changes(old, config_to_json(config))
    refused = [f"{name} {change}" for name, change in changes.items() if not _is_changeable(name)]
    if has_steps and refused:
        raise UserError(
            f"{path} holds a run with another config: {list_names(refused)}; "
            f"restore the old values, give a new workdir, or, to force it, change {FILE} there too"
        )
    return old


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        config = json.loads(files.read_bytes(path))
    except UserError:
        raise
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: copy it again, or give a new workdir")
    if "format_version" in config:
        raise UserError(f"{path.parent} is a converted model: give another workdir")
    if "train" not in config:
        raise UserError(f"{path} is not the config of a run: give another workdir")
    return config


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields that differ, as "old -> new" by name."""
    before, after = _flatten(old), _flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: f"{_show(before, name)} -> {_show(after, name)}"
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    }


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _show(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if name in fields else "(no such field)"


def _is_changeable(name: str) -> bool:
    return name not in FIXED and any(fnmatch(name, pattern) for pattern in CHANGEABLE)


def _told_by_first(message: str) -> str:
    """Returns the message of process 0 in every process."""
    data = message.encode()[:_MESSAGE_BYTES]
    padded = np.frombuffer(data.ljust(_MESSAGE_BYTES), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return told.tobytes().decode(errors="ignore").strip()
