"""What a run has come to: its config, and the parameters of a checkpoint, network by network."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
from etils import epath
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import files
from dynamicrafter_jax.config import config_from_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training import checkpoints, freezing, run_info, stored, workdir
from dynamicrafter_jax.weights import abstract_params


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
    described = files.read_bytes(root / workdir.FILE)
    try:
        config = config_from_json(json.loads(described))
    except ValueError as error:
        raise UserError(f"{root / workdir.FILE} is damaged: copy it from a backup") from error
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
    readers = {name: partial(_read, parts, name) for name in abstract}
    return Run(
        config,
        readers,
        run_info.read_sessions(root)[0]["weights"],
        name=root.name,
        step=int(place.name),
        averaged=averaged,
        has_averages=has_ema,
    )


def _read(parts: Mapping[epath.Path, PyTree], network: str) -> PyTree[Array]:
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
