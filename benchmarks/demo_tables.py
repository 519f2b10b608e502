"""The tables of docs/results.md."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from drawn_clips import Ablation
from judging import NOTHING_NEW, OPPOSITES

WITHOUT: dict[Ablation, str] = {
    "nothing": "nothing",
    "prompt": "a prompt (an empty one)",
    "text": "text tokens",
    "concat": "the concatenated latents",
    "image": "image tokens",
}


def tables(found: Mapping[str, Any]) -> str:
    """Returns what `demo_quality` measured in Markdown."""
    return "\n\n".join(
        part
        for part in (_main(found), _each(found), _ablated(found), _curve(found["curve"]))
        if part
    )


def _main(found: Mapping[str, Any]) -> str:
    main, before = found["main"], found["before"]
    columns = [main, *([before] if before else []), {"motions": found["real"]}]
    new = ", ".join(plain(name) for name in NOTHING_NEW)
    least = "" if before is None else f"{before['distance'] / 2:.2f}: half of the one before"
    rows = [
        ("motion named is the motion made, one motion in the clip",
         [f"{one['motions']['single']:.1%}" for one in columns], "95 %"),
        ("the same, all clips", [f"{one['motions']['overall']:.1%}" for one in columns], "90 %"),
        ("what is named goes the right way, whatever else moves",
         [f"{one['motions']['named']:.1%}" for one in columns], ""),
        ("first frame against the image", _decibels(columns, "first_frame_db"),
         f"{main['vae_db'] - 1.5:.2f} dB: the VAE's own less 1.5"),
        ("the VAE's own", _decibels(columns, "vae_db"), "30 dB"),
        (f"last frame against the true clip, of {new}", _decibels(columns, "last_frame_db"),
         "22 dB"),
        ("mean gradient of the last frames, relative to real clips",
         [f"{one['sharpness']:.0%}" if "sharpness" in one else "" for one in columns], "80 %"),
        ("speed follows `fs`, rank correlation",
         [f"{one['motions']['speed']:.3f}" for one in columns], "0.8"),
        ("interpolation, frames between, clips that move", _decibels(columns, "between_db"),
         f"{found['crossfade_db'] + 3:.2f} dB: 3 above cross-fading"),
        ("Fréchet distance of simple features",
         [f"{one['distance']:.2f}" if "distance" in one else "" for one in columns], least),
        ("weights", [f"{one['megabytes']:.1f} MB" if "megabytes" in one else ""
                     for one in columns], "25 MB"),
    ]  # fmt: skip
    names = ["this model", *(["the one before"] if before else []), "real clips"]
    lines = [f"| measure | {' | '.join(names)} | target |", f"|---|{'---|' * len(names)}---|"]
    lines += [f"| {name} | {' | '.join(cells)} | {target} |" for name, cells, target in rows]
    return "\n".join(lines) + (
        f"\n\nOn {found['clips']} clips; {main['seconds_per_clip']:.2f} s a clip, "
        f"{found['steps']} steps. Still images are at a Fréchet distance of "
        f"{found['still_distance']:.2f}."
    )


def _each(found: Mapping[str, Any]) -> str:
    """Returns the table of single motions, in pairs of opposites."""
    if not found["each"]:
        return ""
    made, real = found["each"]["made"], found["each"]["real"]
    lines = [
        f"| motion by itself, {found['each_clips']} clips | right | of the pair | right in real "
        "clips | goes the right way, whatever else moves |",
        "|---|---|---|---|---|",
    ]
    for pair in OPPOSITES:
        both = np.mean([made["by_motion"][name] for name in pair])
        lines += [
            f"| {plain(name)} | {made['by_motion'][name]:.1%} | {both:.1%} | "
            f"{real['by_motion'][name]:.1%} | {made['named_by_motion'][name]:.1%} |"
            for name in pair
        ]
    return "\n".join(lines)


def _ablated(found: Mapping[str, Any]) -> str:
    few, still = found["ablated_clips"], found["still_share"]
    lines = [
        f"| without, on {few} clips | motion right | target | first frame |",
        "|---|---|---|---|",
    ]
    for name, values in found["ablated"].items():
        most = f"at most {still + 0.05:.1%}" if name in ("prompt", "text") else ""
        lines.append(
            f"| {WITHOUT[name]} | {values['motion']:.1%} | {most} | "
            f"{values['first_frame_db']:.2f} dB |"
        )
    return "\n".join(lines) + f"\n\nOf these clips, {still:.1%} are still."


def _curve(curve: Mapping[str, Mapping[str, float]]) -> str:
    if not curve:
        return ""
    lines = ["| clips seen in training | motion right | Fréchet distance |", "|---|---|---|"]
    lines += [
        f"| {int(clips):,} | {values['motion']:.1%} | {values['distance']:.2f} |"
        for clips, values in curve.items()
    ]
    return "\n".join(lines)


def plain(motion: str) -> str:
    """Returns a motion's name in words."""
    return motion.replace("_", " ")


def _decibels(columns: list[Mapping[str, Any]], name: str) -> list[str]:
    return [f"{one[name]:.2f} dB" if name in one else "" for one in columns]
