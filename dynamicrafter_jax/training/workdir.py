"""The folder of a run: whose it is, what it was made with, and what it has come to.

- `config.json`: the config, which a resumed run must share.
- `run.json`: one entry for each time that the run was started.

Checkpoints lie beside them.
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
from dynamicrafter_jax.weights import stored
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.tensors import list_names

FILE = "config.json"
SESSIONS_FILE = "run.json"

FIXED = ("sampling.height", "sampling.width", "sampling.num_frames")
"""Fields that a resumed run must share although `CHANGEABLE` names their like."""

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
    "train.accumulation",  # the same sums in other parts: memory
    "train.remat",
    "train.log_every",  # what is watched and kept
    "train.checkpoint_every",
    "train.keep_*",
    "train.validat*",
    "train.sample_*",
    "train.profile_*",
)
"""Fields that a resumed run may change, `*` standing for anything; all others it must share."""

DATA = ("data.source", "data.videos")
"""Changeable fields that make another run of it unless the videos are the same."""

_MESSAGE_BYTES = 4096


def check_workdir(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Makes sure, for all processes alike, that `workdir` can be the folder of this run.

    It writes nothing, so that what else may be wrong can be found before anything is there.

    Args:
        workdir: The folder, local or remote; there may be none. That of a run that has no step yet
            is as good as a new one.
        config: The config of the run.

    Raises:
        UserError: If the folder holds steps of another config, holds something else, or can't be
            written.
    """
    path = stored.absolute(workdir)
    _as_first(lambda: _check(path, config))


def claim_workdir(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Makes `workdir` the folder of this run, after the same checks as `check_workdir`.

    `config.json` is written in a new workdir, and anew where fields have changed.

    Raises:
        UserError: As `check_workdir`, or if not all processes see the folder.

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
            f"{path} is not one folder for all processes ({blind} can't see {FILE}): "
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
    path = files.as_path(workdir) / SESSIONS_FILE
    sessions = read_sessions(workdir) if path.exists() else []
    sessions.append(describe_session(config, weights, mesh, first_step))
    files.write_json(path, {"sessions": sessions})


def read_sessions(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the entries of `run.json`, oldest first.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = files.as_path(workdir) / SESSIONS_FILE
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


@dataclass(frozen=True)
class Run:
    """A checkpoint of a run, found complete, and still to be read.

    Attributes:
        config: Of the run.
        readers: For each network, a function that reads its parameters onto one device.
        sources: Name and SHA-256 of the files that the run started from.
        name: Of the run's folder.
        step: Of the checkpoint.
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
        """Which they are, in a word."""
        return "averaged" if self.averaged else "last"

    @property
    def taken(self) -> str:
        """Which they are, and how to get the others, in a few words."""
        if self.averaged:
            return f"averaged parameters of step {self.step} (--noaveraged takes the last)"
        others = "--averaged takes the averaged" if self.has_averages else "it keeps no averages"
        return f"last parameters of step {self.step} ({others})"


def open_run(path: epath.PathLike, *, step: int | None = None, averaged: bool | None = None) -> Run:
    """Finds a checkpoint of a run.

    Args:
        path: Folder of the run.
        step: Which checkpoint; None for the newest.
        averaged: Whether to take the averaged parameters; None takes them where there are some.

    Raises:
        UserError: If the folder holds no run, no such checkpoint or no averages, or is damaged.
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
        nn.meta.unbox(abstract_params(config)),
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
    readers = {name: partial(_read_network, parts, name) for name in abstract}
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
    """Reads a network, which may be in two parts."""
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
    """Has process 0 act, and all raise what it raises, or the others would wait for it."""
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
                "this is no longer the run that it was",
                stacklevel=2,
            )


def _check(path: epath.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the config of the run that is there, None without one; see `check_workdir`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"the workdir {path} is a file: give a folder")
    files.check_writable(path / FILE)
    has_steps = bool(checkpoints.saved_steps(path))
    if not (path / FILE).exists():
        if has_steps:
            raise UserError(
                f"{path} holds checkpoints but no {FILE} that says of which config: "
                f"copy {FILE} back, or give a new workdir"
            )
        return None
    old = _read(path / FILE)
    changes = _changes(old, config_to_json(config))
    refused = [f"{name} {change}" for name, change in changes.items() if not _is_changeable(name)]
    if has_steps and refused:
        raise UserError(
            f"{path} holds a run of another config: {list_names(refused)}; "
            f"set that as it was, give a new workdir, or, if you mean it, change {FILE} there too"
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
        raise UserError(f"{path} is not of a run: give another workdir")
    return config


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns what differs, as "old -> new" by the names of fields."""
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
