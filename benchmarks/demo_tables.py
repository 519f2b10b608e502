"""The tables of docs/results.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from drawn_clips import Ablation
from judging import NOTHING_NEW, OPPOSITES


def plain(motion: str) -> str:
    """Returns a motion's name in words."""
    return motion.replace("_", " ")


WITHOUT: dict[Ablation, str] = {
    "nothing": "nothing",
    "prompt": "a prompt (an empty one)",
    "text": "text tokens",
    "concat": "the concatenated latents",
    "image": "image tokens",
}

MEASURES = {
    "single": ("motion named is the motion made, one motion in the clip", "{:.1%}"),
    "overall": ("the same, all clips", "{:.1%}"),
    "named": ("what is named goes the right way, whatever else moves", "{:.1%}"),
    "first_frame_db": ("first frame against the image", "{:.2f} dB"),
    "vae_db": ("the VAE's own", "{:.2f} dB"),
    "last_frame_db": (
        f"last frame against the true clip, of {', '.join(map(plain, NOTHING_NEW))}",
        "{:.2f} dB",
    ),
    "sharpness": ("mean gradient of the last frames, relative to real clips", "{:.0%}"),
    "speed": ("speed follows `fs`, rank correlation", "{:.3f}"),
    "named_speed": ("the same, of motions that go the right way", "{:.3f}"),
    "between_db": ("interpolation, frames between, clips that move", "{:.2f} dB"),
    "distance": ("Fréchet distance of simple features", "{:.2f}"),
    "megabytes": ("weights", "{:.1f} MB"),
}
"""By the names of `demo_quality`: what is measured, and how it is written."""


def tables(found: Mapping[str, Any]) -> str:
    """Returns what `demo_quality` measured in Markdown."""
    return "\n\n".join(
        part
        for part in (
            _main(found),
            _before(found),
            _each(found),
            _ablated(found),
            _curve(found["curve"]),
        )
        if part
    )


def _main(found: Mapping[str, Any]) -> str:
    main = found["main"]
    targets = {
        "single": "95 %",
        "overall": "90 %",
        "first_frame_db": f"{main['vae_db'] - 1.5:.2f} dB: the VAE's own less 1.5",
        "vae_db": "30 dB",
        "last_frame_db": "22 dB",
        "sharpness": "80 %",
        "speed": "0.8",
        "between_db": f"{found['crossfade_db'] + 3:.2f} dB: 3 above cross-fading",
        "megabytes": "25 MB",
    }
    lines = ["| measure | this model | real clips | target |", "|---|---|---|---|"]
    columns = [main, {"motions": found["real"]}]
    lines += [f"{_row(name, columns)} {targets.get(name, '')} |" for name in MEASURES]
    return "\n".join(lines) + (
        f"\n\nOn {found['clips']} clips; {found['seconds_per_clip']:.2f} s a clip, "
        f"{found['steps']} steps. Still images are at a Fréchet distance of "
        f"{found['still_distance']:.2f}."
    )


def _before(found: Mapping[str, Any]) -> str:
    """Returns the table that compares with another model."""
    if not found["before"]:
        return ""
    few = found["ablated_clips"]
    lines = [f"| on the first {few} clips | this model | the one before |", "|---|---|---|"]
    lines += [_row(name, found["before"]) for name in MEASURES]
    half = found["before"][1]["distance"] / 2
    return "\n".join(lines) + f"\n\nThe target of the Fréchet distance is half of that: {half:.2f}."


def _row(name: str, columns: Sequence[Mapping[str, Any]]) -> str:
    """Returns the row of a measure, with an empty cell where a column lacks it."""
    label, form = MEASURES[name]
    values = [{**one, **one["motions"]}.get(name) for one in columns]
    cells = ["" if value is None else form.format(value) for value in values]
    return f"| {label} | {' | '.join(cells)} |"


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
