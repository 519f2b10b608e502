"""The plot of quality against cost in docs/sampling.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "quality_cost.svg"


def write(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws what `quality_cost` screened: motion, Fréchet distance and PSNR against passes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quality_cost"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    titles = {
        "motion": "motion right, in percent",
        "distance": "Fréchet distance",
        "psnr": "to 50 steps of DDIM, in dB",
    }
    solvers = sorted({name.rpartition(" ")[0] for name in found if "," not in name} - {""})
    ticks = sorted({one["passes"] for name, one in found.items() if "," not in name})
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for number, solver in enumerate(solvers):
            points = [
                (one["passes"], one[measure] * (100 if measure == "motion" else 1))
                for name, one in found.items()
                if name.rpartition(" ")[0] == solver and one[measure] is not None
            ]
            if points:
                x, y = zip(*sorted(points), strict=True)
                axes.plot(x, y, f"C{number}", marker="o", markersize=3, label=solver)
        cached = [one for name, one in found.items() if "," in name and one[measure] is not None]
        if cached:
            axes.scatter(
                [one["passes"] for one in cached],
                [one[measure] * (100 if measure == "motion" else 1) for one in cached],
                marker="x",
                color="black",
                label="with a cache",
            )
        axes.set(xscale="log", xlabel="passes of the U-Net for a clip", title=title)
        axes.set_xticks(ticks, [f"{passes:.0f}" for passes in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(IMAGE, metadata={"Date": None})
    pyplot.close(figure)
