"""Plans: the programs of a run compiled for chips, and whether they fit the chips' memory."""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning.chips import Topology
from dynamicrafter_jax.planning.programs import (
    ForwardFlops,
    forward_flops,
    sampling_programs,
    training_programs,
)
from dynamicrafter_jax.planning.results import program_report
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.weights.load import abstract_params

_GIB = 2**30


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
        config: A config, as in `configs/`; its `mesh` says how devices are used.
        topology: The chips.
        devices: The topology's devices, to compile for; or equally many others, to compile for
            those instead.
        mode: "train" or "sample".
        batch: Clips per batch.
        cached: Whether training reads a cache.
        effort: One of `EFFORTS`.
        cache: Folder where results are kept.
        save_executable: Folder for the executables; None saves none.

    Raises:
        UserError: The config, the mesh or the topology is invalid.
    """
    mesh = sharding.mesh_of(config, devices)
    if mesh.size != topology.devices:
        raise UserError(
            f"the mesh has {mesh.size} devices, but {topology.name} has {topology.devices}: "
            "set one axis of config.mesh to -1, such as --config.mesh.data=-1"
        )
    forward = forward_flops(config, nn.meta.unbox(abstract_params(config)))
    if mode == "train":
        if batch is not None:
            config.train.batch_size = batch
        programs = training_programs(config, mesh, cached=cached)
    else:
        programs = sampling_programs(config, mesh, batch_size=batch or 1)
    reports = [
        program_report(program, topology, effort, cache=cache, save_executable=save_executable)
        for program in programs
    ]
    if mode == "train":
        summary = training_summary(reports, forward, config)
    else:
        passes = SamplingSettings.from_config(config.sampling).num_passes
        summary = sampling_summary(reports[1], forward, clips=batch or 1, passes=passes)
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
        "advice": advice(reports, config, mode),
    }


def training_summary(
    programs: Sequence[dict[str, Any]], forward: ForwardFlops, config: ConfigDict
) -> dict[str, Any]:
    """Compares a training step's arithmetic with three forward passes of the U-Net per clip.

    The part of the VAE and the towers is that of the program with nothing else; the projector,
    which trains too, counts as three of its forward passes.

    Args:
        programs: Reports of the step and, without a cache, of the frozen networks.
        forward: Operations of one clip's forward passes.
        config: A config, as in `configs/`, with the planned batch size.
    """
    step, *rest = programs
    clips, parts = config.train.batch_size, config.train.accumulation
    analytic = 3 * clips * forward.unet
    summary = {"clips": clips, "analytic_flops": analytic}
    if any(program["refusal"] for program in programs):
        return summary
    frozen = sum(program["flops"] for program in rest) * parts
    unet = step["flops"] - frozen - 3 * clips * forward.projector
    return summary | {"frozen_flops": frozen, "unet_flops": unet, "ratio": unet / analytic}


def sampling_summary(
    denoise: dict[str, Any], forward: ForwardFlops, *, clips: int, passes: int
) -> dict[str, Any]:
    """Compares a denoising step's arithmetic with the passes of the U-Net that it needs.

    Args:
        denoise: Report of the step.
        forward: Operations of one clip's forward passes.
        clips: Clips requested; those that pad a batch to the mesh don't count as needed.
        passes: Passes of the U-Net per step.
    """
    analytic = clips * passes * forward.unet
    summary = {"clips": clips, "analytic_flops": analytic}
    if denoise["refusal"]:
        return summary
    return summary | {
        "ratio": denoise["flops"] / analytic,
        "share_a_device": denoise["flops_a_device"] / analytic,
    }


def advice(programs: Sequence[dict[str, Any]], config: ConfigDict, mode: str) -> str:
    """Returns one line that says which program does not fit and what to change; "" if all fit."""
    over = [program for program in programs if not program["fits"]]
    if not over:
        return ""
    worst = max(over, key=lambda program: program.get("memory_bytes", {}).get("total", 2**62))
    changes = list(_changes(worst, config, mode))
    why = worst["refusal"] and _shorten(worst["refusal"])
    if not why:
        total = worst["memory_bytes"]["total"] / _GIB
        why = f"needs {total:.2f} GiB a device"
    return f"{worst['name']} does not fit: {why}; try {', or '.join(changes[:3])}"


def _changes(program: dict[str, Any], config: ConfigDict, mode: str) -> list[str]:
    """Returns settings that make a program smaller, the most helpful first."""
    sizes = program.get("memory_bytes", {})
    held = program.get("held_bytes", sizes)
    stored = sum(held.get(name, 0) for name in ("parameters", "optimizer", "averages"))
    working = sizes.get("temporaries", 0)
    if program["refusal"]:
        working = max(0, _needed(program["refusal"]) - stored)
    if mode == "train":
        less_stored = ["more --config.mesh.fsdp"]
        less_working = []
        if config.train.remat != "blocks":
            less_working.append("--config.train.remat=blocks")
        less_working.append(f"more --config.train.accumulation than {config.train.accumulation}")
        if program["name"] == "frozen networks" and config.sampling.vae_frames > 1:
            less_working.insert(0, "--config.sampling.vae_frames=1")
    else:
        less_stored, less_working = [], []
        if config.precision.param_dtype != "bfloat16":
            less_stored.append("--config.precision.param_dtype=bfloat16")
        less_stored.append("more --config.mesh.fsdp or --config.mesh.tensor")
        if program["name"] != "denoise" and config.sampling.vae_frames > 1:
            less_working.append("--config.sampling.vae_frames=1")
        if program["name"] == "denoise" and not config.sampling.sequential_guidance:
            less_working.append("--config.sampling.sequential_guidance=True")
        less_working.append("more --config.mesh.sequence")
    if config.precision.dtype != "bfloat16":
        less_working.insert(0, "--config.precision.dtype=bfloat16")
    return less_stored + less_working if stored > working else less_working + less_stored


def _needed(refusal: str) -> float:
    """Returns the bytes that the compiler says a program needs, 0 if it does not say."""
    found = re.search(r"(?:\(|Used )([\d.]+)([KMGT])\)? (?:exceeds|of)", refusal)
    return float(found.group(1)) * 2.0 ** (10 * " KMGT".index(found.group(2))) if found else 0.0


def _shorten(refusal: str) -> str:
    """Returns what the compiler says about memory."""
    found = re.search(
        r"(?:total memory required[^.]*?\([\d.]+[KMGT]?\) exceeds available HBM \([\d.]+[KMGT]?\)"
        r"|Used [\d.]+[KMGT]? of [\d.]+[KMGT]? hbm)",
        refusal,
    )
    return f"the compiler says {found.group()!r}" if found else refusal[:200]


def as_text(plan: dict[str, Any]) -> str:
    """Returns a plan as text for people."""
    lines = [
        f"{plan['config']}, {plan['mode']}, {plan['topology']}: {plan['devices']} devices, mesh "
        + " x ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1),
        f"a device has {plan['hbm_bytes'] / _GIB:.2f} GiB of HBM, of which programs get "
        f"{plan['usable_hbm_bytes'] / _GIB:.2f}",
    ]
    for program in plan["programs"]:
        lines += ["", f"{program['name']} (compiled in {program['compile_seconds']} s)"]
        if program["refusal"]:
            lines.append(f"  refused: {_shorten(program['refusal'])}")
            continue
        for name, size in program["memory_bytes"].items():
            lines.append(f"  {name:<20}{size / _GIB:9.3f} GiB a device")
        lines.append(f"  {'arithmetic':<20}{program['flops_a_device'] / 1e12:9.3f} TFLOP a device")
        for kind, each in program["collectives"].items():
            lines.append(f"  {kind:<20}{each['bytes'] / _GIB:9.3f} GiB in {each['count']}")
        if program["loops_counted_once"]:
            lines.append(f"  loops counted once: {', '.join(program['loops_counted_once'])}")
    lines.append("")
    for name, value in plan["summary"].items():
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        if name.endswith("flops"):
            shown = f"{value / 1e12:.2f} TFLOP"
        lines.append(f"{name.replace('_', ' '):<32}{shown}")
    lines.append("fits" if plan["fits"] else plan["advice"])
    return "\n".join(lines)
