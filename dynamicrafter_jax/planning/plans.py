"""A plan: the programs of a run, compiled for chips and reported."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning import report
from dynamicrafter_jax.planning.analytic import forward_flops
from dynamicrafter_jax.planning.chips import Topology
from dynamicrafter_jax.planning.programs import sampling_programs, training_programs
from dynamicrafter_jax.planning.results import compiled
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.weights.load import abstract_params


def make_plan(
    config: ConfigDict,
    topology: Topology,
    devices: Sequence[Any],
    mode: str,
    *,
    batch: int | None = None,
    cached: bool = False,
    effort: str = "low",
    cache: epath.Path,
    save_executable: epath.Path | None = None,
) -> dict[str, Any]:
    """Returns a plan, as plain JSON types.

    Args:
        config: As in `configs/`; its `mesh` says which devices are used.
        topology: The chips.
        devices: Theirs, to compile for; or others as many, to see what those would be told.
        mode: "train" or "sample".
        batch: Clips at once.
        cached: Whether training reads a cache.
        effort: One of `EFFORTS`.
        cache: Folder that results are kept in.
        save_executable: Folder for the executables.

    Raises:
        UserError: If the config, the mesh or the topology is refused.
    """
    mesh = sharding.mesh_of(config, devices)
    if mesh.size != topology.devices:
        raise UserError(
            f"the mesh has {mesh.size} devices, but {topology.name} has {topology.devices}: "
            "set one axis of config.mesh to -1, as --config.mesh.data=-1"
        )
    forward = forward_flops(config, nn.meta.unbox(abstract_params(config)))
    if mode == "train":
        if batch is not None:
            config.train.batch_size = batch
        programs = training_programs(config, mesh, cached=cached)
    else:
        programs = sampling_programs(config, mesh, batch_size=batch or 1)
    made = (
        compiled(program, topology, effort, cache=cache, save_executable=save_executable)
        for program in programs
    )
    reports = [report.program_report(program, topology, mesh.size) for program in made]
    if mode == "train":
        summary = report.training_report(reports, forward, config, mesh.size)
    else:
        settings = SamplingSettings.from_config(config.sampling)
        summary = report.sampling_report(
            reports,
            forward,
            clips=batch or 1,
            passes=settings.num_passes,
            steps=settings.steps,
            devices=mesh.size,
        )
    return {
        "config": config.name,
        "mode": mode,
        "topology": topology.name,
        "devices": topology.devices,
        "devices_a_chip": topology.chip.cores,
        "mesh": dict(mesh.shape),
        "cached": cached,
        "effort": effort,
        "hbm_bytes": topology.chip.hbm,
        "usable_hbm_bytes": topology.chip.usable_hbm,
        "forward_flops": forward._asdict(),
        "programs": reports,
        "summary": summary,
        "fits": all(program["fits"] for program in reports),
        "advice": report.advice(reports, config, mode),
    }
