"""Whose run a workdir holds: its config, in `config.json`, which a resumed run must share."""

import json
import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dynamicrafter_jax import files
from dynamicrafter_jax.config import config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.tensors import list_names
from dynamicrafter_jax.training import checkpoints, stored

FILE = "config.json"

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
