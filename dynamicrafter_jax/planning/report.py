"""A plan: what the compiled programs of a run cost, against what the chips have."""

import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dynamicrafter_jax.planning.analytic import ForwardFlops
from dynamicrafter_jax.planning.chips import Topology
from dynamicrafter_jax.planning.collectives import KINDS
from dynamicrafter_jax.planning.results import Compiled
from dynamicrafter_jax.planning.roofline import roofline

_GIB = 2**30


def program_report(made: Compiled, topology: Topology, devices: int) -> dict[str, Any]:
    """Returns what one device needs for one program, as plain JSON types.

    Args:
        made: The program, compiled.
        topology: What for.
        devices: That run it together.
    """
    chip = topology.chip
    report: dict[str, Any] = {"name": made.name, "compile_seconds": round(made.seconds, 1)}
    if made.memory is None or made.counts is None:
        return report | {"fits": False, "refusal": made.refusal, "held_bytes": made.held}
    memory, counts = made.memory, made.counts
    total = memory.total + made.beside
    other = max(0, memory.arguments - sum(made.held.values()))
    walls = roofline(counts, chip, topology.devices // topology.slices)
    return report | {
        "fits": total <= chip.usable_hbm,
        "refusal": None,
        "memory_bytes": {
            **made.held,
            "parameters beside": made.beside,
            "other arguments": other,
            "results": memory.results,
            "temporaries": memory.temporaries,
            "code": memory.code,
            "total": total,
        },
        "flops_a_device": counts.flops,
        "flops": counts.flops * devices,
        "hbm_bytes_a_device": counts.bytes,
        "collectives": {
            kind: {
                "count": sum(each.trips for each in counts.collectives if each.kind == kind),
                "bytes": counts.sent(kind),
            }
            for kind in KINDS
            if any(each.kind == kind for each in counts.collectives)
        },
        "loops_counted_once": list(counts.unknown_trips),
        "kernels_not_counted": list(counts.uncounted_kernels),
        "seconds": {
            "compute": walls.compute,
            "memory": walls.memory,
            "network": walls.network,
            "all-to-all": walls.exchange,
            "roofline": walls.seconds,
        },
        "wall": walls.wall,
    }


def training_report(
    programs: Sequence[dict[str, Any]], forward: ForwardFlops, config: ConfigDict, devices: int
) -> dict[str, Any]:
    """Returns the step's arithmetic beside three forward passes of the U-Net a clip.

    What VAE and towers take is that of the program with them alone; the projector, which trains
    too, is taken at three of its forward passes.

    Args:
        programs: Reports of the step and, without a cache, of the frozen networks.
        forward: Of one clip.
        config: As in `configs/`, with the batch size that was planned.
        devices: That run it together.
    """
    step, *rest = programs
    clips, parts = config.train.batch_size, config.train.accumulation
    analytic = 3 * clips * forward.unet
    report: dict[str, Any] = {"clips": clips, "analytic_flops": analytic}
    if "flops" not in step or any("flops" not in program for program in rest):
        return report
    frozen = sum(program["flops"] for program in rest) * parts
    unet = step["flops"] - frozen - 3 * clips * forward.projector
    return report | {
        "frozen_flops": frozen,
        "unet_flops": unet,
        "ratio": unet / analytic,
        "utilisation": _utilisation(analytic, step, devices),
        "all_to_all_share": step["seconds"]["all-to-all"] / step["seconds"]["roofline"],
    }


def sampling_report(
    programs: Sequence[dict[str, Any]],
    forward: ForwardFlops,
    *,
    clips: int,
    passes: int,
    steps: int,
    devices: int,
) -> dict[str, Any]:
    """Returns a denoising step's arithmetic beside the passes of the U-Net that it needs.

    Args:
        programs: Reports of "encode", "denoise" and "decode".
        forward: Of one clip.
        clips: Asked for; those that fill up a mesh do not count as needed.
        passes: Of the U-Net a step.
        steps: Of the solver.
        devices: That run it together.
    """
    encode, denoise, decode = programs
    analytic = clips * passes * forward.unet
    report: dict[str, Any] = {"clips": clips, "analytic_flops": analytic}
    if "flops" not in denoise:
        return report
    report |= {
        "ratio": denoise["flops"] / analytic,
        "share_a_device": denoise["flops_a_device"] / analytic,
        "utilisation": _utilisation(analytic, denoise, devices),
        "all_to_all_share": denoise["seconds"]["all-to-all"] / denoise["seconds"]["roofline"],
    }
    if "flops" in encode and "flops" in decode:
        roofline = [program["seconds"]["roofline"] for program in (encode, denoise, decode)]
        report["roofline_seconds_of_all_steps"] = roofline[0] + steps * roofline[1] + roofline[2]
    return report


def advice(programs: Sequence[dict[str, Any]], config: ConfigDict, mode: str) -> str:
    """Returns one line: which program does not fit, and what to change; "" if all fit."""
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
    """Returns settings that make a program smaller, what helps most first."""
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
    """Returns the compiler's own line on memory."""
    found = re.search(
        r"(?:total memory required[^.]*?\([\d.]+[KMGT]?\) exceeds available HBM \([\d.]+[KMGT]?\)"
        r"|Used [\d.]+[KMGT]? of [\d.]+[KMGT]? hbm)",
        refusal,
    )
    return f"the compiler says {found.group()!r}" if found else refusal[:200]


def _utilisation(analytic: int, program: dict[str, Any], devices: int) -> float:
    """Returns the part of the peak that the needed arithmetic takes in the roofline's time."""
    needed = analytic / devices
    compute = program["seconds"]["compute"] * needed / program["flops_a_device"]
    return compute / program["seconds"]["roofline"]


def as_text(plan: dict[str, Any]) -> str:
    """Returns a plan for reading."""
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
        lines.append(f"  {'HBM traffic':<20}{program['hbm_bytes_a_device'] / _GIB:9.3f} GiB")
        for kind, each in program["collectives"].items():
            lines.append(f"  {kind:<20}{each['bytes'] / _GIB:9.3f} GiB in {each['count']}")
        walls = ", ".join(f"{name} {t * 1e3:.2f} ms" for name, t in program["seconds"].items())
        lines.append(f"  at best: {walls}; the wall is {program['wall']}")
        if program["loops_counted_once"]:
            lines.append(f"  loops counted once: {', '.join(program['loops_counted_once'])}")
        if program["kernels_not_counted"]:
            lines.append(f"  kernels not counted: {', '.join(program['kernels_not_counted'])}")
    lines.append("")
    for name, value in plan["summary"].items():
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        if name.endswith("flops"):
            shown = f"{value / 1e12:.2f} TFLOP"
        lines.append(f"{name.replace('_', ' '):<32}{shown}")
    lines.append("fits" if plan["fits"] else plan["advice"])
    return "\n".join(lines)
