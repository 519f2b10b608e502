"""Shares work between processes: each samples its own batches if it can hold a whole mesh."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.sampling.bulk.loading import Inspected, Loader
from dynamicrafter_jax.sampling.bulk.table import Request


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of a job that one process does.

    Attributes:
        mesh: The devices to sample on: the process's own, or those of all processes.
        part: It samples every batch whose number is `part` modulo `parts`.
        parts: Into how many parts the batches are divided.
        together: Whether all processes sample the same batches together, in step.
    """

    mesh: Mesh
    part: int
    parts: int
    together: bool

    @property
    def writes(self) -> bool:
        """Whether it writes what it samples."""
        return not self.together or jax.process_index() == 0


def share_of(config: ConfigDict) -> Share:
    """Returns this process's share.

    If a process has enough devices for the config's mesh, each process makes a mesh of its own and
    takes its own batches, so that none waits for another. An axis of -1 then takes the rest of the
    process's devices.

    Raises:
        UserError: There are too few devices for the mesh.
    """
    axes = dataclasses.asdict(settings_of(sharding.MeshSettings, "mesh", config.mesh)).values()
    needed = math.prod(size for size in axes if size > 0)
    if needed <= jax.local_device_count():
        mesh = sharding.mesh_of(config, jax.local_devices())
        return Share(mesh, jax.process_index(), jax.process_count(), together=False)
    return Share(sharding.mesh_of(config), 0, 1, together=jax.process_count() > 1)


def agreed(loader: Loader, requests: Sequence[Request]) -> Callable[[Request], Inspected]:
    """Inspects all requests up front, so that all processes agree on what to do.

    An output is made if any process finds it missing, and fails if any process can't read its
    images. All processes must call this, with the same requests.

    Returns:
        A function to use instead of `Loader.inspect`.
    """
    with ThreadPoolExecutor() as pool:
        inspected = list(pool.map(loader.check, requests))
    codes = [2 if one.error is not None else 0 if one.finished else 1 for one in inspected]
    codes = multihost_utils.process_allgather(np.asarray(codes, np.int32))
    known = {}
    for one, code in zip(inspected, np.max(codes, axis=0).tolist(), strict=True):
        error = (one.error or "another process can't read its images") if code == 2 else None
        known[one.request] = dataclasses.replace(one, finished=code == 0, error=error)
    return known.__getitem__
