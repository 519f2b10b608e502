"""The report: a JSON with every setting and hash, a page for people, and a table of clips."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dynamicrafter_jax.evaluation.measures import PIC
from dynamicrafter_jax.evaluation.protocol import Protocol
from dynamicrafter_jax.evaluation.scoring import FVD, KVD, Measured, Score, Scores
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.files import as_path

FILE, PAGE = "report.json", "report.md"

BETTER = {
    FVD: "lower",
    KVD: "lower",
    PIC: "higher",
    "first_frame_psnr": "higher",
    "first_frame_ssim": "higher",
    "text_similarity": "higher",
}
"""Whether lower or higher is better, for measures of which one is."""

_DIGITS = {FVD: 2, KVD: 2, "first_frame_psnr": 2}


def write_report(
    folder: epath.PathLike,
    protocol: Protocol,
    sets: Sequence[Scores],
    about: Mapping[str, Any],
    plots: Sequence[str] = (),
) -> None:
    """Writes `report.json` and `report.md`.

    Args:
        folder: Where to write.
        protocol: The protocol of all numbers.
        sets: The numbers of each set.
        about: What else they depend on: data, weights, code, machine, command.
        plots: Names of pictures in the folder, for the page.

    Raises:
        UserError: The report can't be written.
    """
    said = {
        "protocol": protocol.as_json(),
        "protocol_sha256": protocol.sha256,
        "sets": {one.set: _set_as_json(one) for one in sets},
        **about,
    }
    files.write_json(as_path(folder) / FILE, said)
    page = page_of(protocol, sets, about, plots)
    files.write_bytes(as_path(folder) / PAGE, page.encode(errors="backslashreplace"))


def write_clips(folder: epath.PathLike, found: Measured) -> None:
    """Writes `SET.csv`: each clip's name, group and per-clip numbers."""
    values = found.numbers
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "group", *values])
    for i, (name, group) in enumerate(zip(found.clips, found.groups, strict=True)):
        table.writerow([name, group, *(float(row[i]) for row in values.values())])
    # A name that is not UTF-8 is written with the same bytes as on disk.
    data = text.getvalue().encode(errors="surrogateescape")
    files.write_bytes(as_path(folder) / f"{found.name}.csv", data)


def page_of(
    protocol: Protocol,
    sets: Sequence[Scores],
    about: Mapping[str, Any],
    plots: Sequence[str] = (),
) -> str:
    """Returns the page, in Markdown."""
    lines = [f"# {protocol.name}, version {protocol.version}", "", protocol.about, ""]
    lines += scores_table(sets, protocol.measures.level)
    for note in dict.fromkeys(note for one in sets for note in one.notes):
        lines += ["", f"Note: {note}."]
    for plot in plots:
        lines += ["", f"![{plot}]({plot})"]
    lines += ["", "| what | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(protocol, about)]
    return "\n".join(lines) + "\n"


def scores_table(sets: Sequence[Scores], level: float) -> list[str]:
    """Returns the lines of a table of all sets, with a row for each number."""
    names = [one.set for one in sets]
    lines = [
        f"| measure | better | {' | '.join(names)} | number of videos | reference |",
        f"|---|---|{'---|' * len(names)}---|---|",
    ]
    by_set = [{score.metric: score for score in one.scores} for one in sets]
    for metric in by_set[0]:
        scores = [of_set[metric] for of_set in by_set]
        cells = [_cell(score) for score in scores]
        against = scores[0].against
        real = "" if against is None else _number(metric, against)
        row = [metric, BETTER.get(metric, ""), *cells, str(scores[0].videos), real]
        lines.append(f"| {' | '.join(row)} |")
    if any(score.low is not None for of_set in by_set for score in of_set.values()):
        lines += ["", f"In brackets: {level:.0%} confidence intervals, by resampling clips."]
    return lines


def _cell(score: Score) -> str:
    value = _number(score.metric, score.value)
    if score.low is None or score.high is None:
        return value
    ends = _number(score.metric, score.low), _number(score.metric, score.high)
    return f"{value} ({ends[0]} to {ends[1]})"


def _number(metric: str, value: float) -> str:
    digits = _DIGITS.get(metric, 4)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # avoids "-0"


def _set_as_json(one: Scores) -> dict[str, Any]:
    said = dataclasses.asdict(one)
    del said["set"]
    said["scores"] = {score.pop("metric"): score for score in said["scores"]}
    return said


def _facts(protocol: Protocol, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the facts that someone who compares two pages looks at first."""
    facts = [("protocol", f"`{protocol.sha256}`")]
    for name in ("clip_list_sha256", "checkpoint", "data", "videos"):
        if about.get(name):
            facts.append((name.replace("_", " "), f"`{about[name]}`"))
    for name, settings in about.get("measures", {}).items():
        if "weights_sha256" in settings:
            facts.append((f"weights of {name}", f"`{settings['weights_sha256']}`"))
    if about.get("left_out"):
        facts.append(("videos left out", str(len(about["left_out"]))))
    environment = about.get("environment", {})
    for name in ("git_revision", "devices"):
        if environment.get(name):
            facts.append((name.replace("_", " "), f"`{environment[name]}`"))
    return facts
