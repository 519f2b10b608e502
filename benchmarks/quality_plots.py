"""The plots of docs/results.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BLUE, PALE, GREY = "#1f4e8c", "#a9c4e4", "#888888"


def write(found: Mapping[str, Any]) -> None:
    """Draws the measurements of `demo_quality`.

    - `results_motions.svg`: for each motion, how many clips show it, and how many are right.
    - `results_speed.svg`: how far motions go against how far they should go.
    - `results_curve.svg`: quality over training, if that was measured.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"  # the same file from the same numbers
    _draw_motions(found["each"]["made"] if found["each"] else found["main"]["motions"])
    _draw_speeds(np.asarray(found["main"]["speeds"]))
    if found["curve"]:
        _draw_curve(found["curve"])


def _draw_motions(motions: Mapping[str, Any]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    named, right = motions["named_by_motion"], motions["by_motion"]
    for shares, colour, label in (
        (named, PALE, "goes the right way, whatever else moves"),
        (right, BLUE, "the clip is right"),
    ):
        names = [name.replace("_", " ") for name in right]
        axes.barh(
            names,
            [100 * shares.get(name, 0) for name in right],
            color=colour,
            label=label,
        )
    axes.invert_yaxis()
    axes.axvline(80, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 100), xlabel="clips that name the motion, in percent")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _save(figure, "motions")


def _draw_speeds(pairs: np.ndarray) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.4, 4), layout="constrained")
    most = float(pairs[:, 0].max()) * 1.1
    axes.plot([0, most], [0, most], color=GREY, linestyle="--", linewidth=1)
    axes.scatter(pairs[:, 0], pairs[:, 1], s=6, color=BLUE, alpha=0.5, linewidths=0)
    axes.set(
        xlim=(0, most),
        ylim=(-most / 2, most * 1.3),
        xlabel="seconds that 16 frames last, by fs",
        ylabel="seconds that the motion found takes",
    )
    axes.grid(alpha=0.3)
    _save(figure, "speed")


def _draw_curve(curve: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    steps = [int(step) for step in curve]
    labels = {"motion": "motion right, in percent", "distance": "Fréchet distance"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        values = [one[name] * (100 if name == "motion" else 1) for one in curve.values()]
        axes.plot(steps, values, color=BLUE, marker="o", markersize=4, linewidth=2)
        axes.set(xlabel="clips seen in training", title=label, ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
    _save(figure, "curve")


def _save(figure: Any, name: str) -> None:
    from matplotlib import pyplot

    figure.savefig(IMAGES / f"results_{name}.svg", metadata={"Date": None})
    pyplot.close(figure)
