"""Plots for the report. Only this module needs matplotlib, from the extra `evaluation`."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.measures import PIC
from dynamicrafter_jax.evaluation.scoring import Measured, Scores
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.files import as_path

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise UserError(
        'plots need matplotlib: pip install "dynamicrafter-jax[evaluation]", or give --noplots'
    ) from error

_GROUPS_SHOWN = 40
_BINS = 30


def draw_plots(
    folder: epath.PathLike, sets: Sequence[Scores], measured: Sequence[Measured]
) -> list[str]:
    """Writes all plots for which there are numbers, and returns their names.

    They are `videos.svg`, metrics against the number of videos; `clips.svg`, the distribution over
    clips; `frames.svg`, PIC by frame; and `groups.svg`, means by group.

    Raises:
        UserError: A plot can't be written.
    """
    drawn: dict[str, Figure] = {"videos.svg": _against_videos(sets)}
    if measured[0].numbers:
        drawn["clips.svg"] = _spread(measured)
    if any(one.framewise is not None for one in sets):
        drawn["frames.svg"] = _by_frame(sets)
    if any(one.groups for one in sets):
        drawn["groups.svg"] = _by_group(sets[0])
    for name, figure in drawn.items():
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
        files.write_bytes(as_path(folder) / name, data.getvalue())
    return list(drawn)


def _against_videos(sets: Sequence[Scores]) -> Figure:
    metrics = [name for name in sets[0].curve if name != "videos"]

    def draw(axes, metric: str) -> None:
        for one in sets:
            axes.plot(one.curve["videos"], one.curve[metric], marker="o", label=one.set)
            last = next(score for score in one.scores if score.metric == metric)
            if last.low is not None and last.high is not None:
                ends = [[last.value - last.low], [last.high - last.value]]
                axes.errorbar([one.curve["videos"][-1]], [last.value], yerr=ends, capsize=4)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("videos")

    return _grid(metrics, draw, legend=len(sets) > 1)


def _spread(measured: Sequence[Measured]) -> Figure:
    found = [one.numbers for one in measured]

    def draw(axes, metric: str) -> None:
        values = [of_set[metric] for of_set in found if metric in of_set]
        bins = np.histogram_bin_edges(np.concatenate(values), _BINS)
        for one, of_set in zip(measured, found, strict=True):
            if metric in of_set:
                axes.hist(of_set[metric], bins=bins, histtype="step", label=one.name)
        axes.set_ylabel("clips")

    return _grid(list(found[0]), draw, legend=True)


def _by_frame(sets: Sequence[Scores]) -> Figure:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for one in sets:
        if one.framewise is not None:
            frames = np.arange(1, len(one.framewise["mean"]) + 1)
            axes.plot(frames, one.framewise["mean"], label=one.set)
            axes.fill_between(frames, one.framewise["low"], one.framewise["high"], alpha=0.2)
    axes.set(xlabel="frame", ylabel=PIC, title=f"{PIC} by frame: mean, and 80 % of clips")
    axes.legend()
    return figure


def _by_group(one: Scores) -> Figure:
    """Draws the means of the lowest and highest groups, by PIC or else the first metric."""
    metrics = [name for name in next(iter(one.groups.values())) if name != "videos"]
    metric = PIC if PIC in metrics else metrics[0]
    ordered = sorted(one.groups, key=lambda name: one.groups[name][metric])
    if len(ordered) > _GROUPS_SHOWN:
        half = _GROUPS_SHOWN // 2
        ordered = ordered[:half] + ordered[-half:]
    figure = Figure(figsize=(5, 1 + 0.18 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    axes.barh(ordered, [one.groups[name][metric] for name in ordered])
    axes.tick_params(axis="y", labelsize=6)
    axes.set_title(f"{metric} of {one.set} by group")
    return figure


def _grid(metrics: Sequence[str], draw: Callable[..., None], *, legend: bool) -> Figure:
    """Draws a plot for each metric, three in a row."""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for i, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw(axes, metric)
        axes.set_title(metric)
        if legend and i == 0:
            axes.legend(fontsize="small")
    return figure
