"""Runs an evaluation: measures the reference and the sets, compares them, and reports."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.clips import Clip, Problem, choose, list_sha256, write_list
from dynamicrafter_jax.evaluation.datasets import DataSet, open_data, open_folder
from dynamicrafter_jax.evaluation.measuring import Bench, Item, Look, Produce, reading
from dynamicrafter_jax.evaluation.protocol import Protocol
from dynamicrafter_jax.evaluation.reference import Reference
from dynamicrafter_jax.evaluation.report import write_clips, write_report
from dynamicrafter_jax.evaluation.scoring import Measured, Scores, measured, score
from dynamicrafter_jax.runtime import distributed
from dynamicrafter_jax.runtime.files import as_path

CLIPS, FEATURES = "clips.jsonl", "features"
"""What the folder of a run holds besides the report."""

REFERENCE, VIDEOS, THROUGH_MP4 = "reference", "videos", "videos_through_mp4"
"""Names of sets."""

Draw = Callable[[epath.PathLike, Sequence[Scores], Sequence[Measured]], list[str]]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The clips that are compared with the reference.

    Attributes:
        items: The clips.
        produce: Makes or reads them.
        sets: Sets by name, each with a function applied to a clip before it is measured.
        problems: Videos that were skipped before.
    """

    items: Sequence[Item]
    produce: Produce
    sets: Mapping[str, Look]
    problems: Sequence[Problem] = ()


def as_they_are(seen: Any) -> Any:
    """Returns its argument unchanged."""
    return seen


def open_reference(
    protocol: Protocol, place: str, *, skip: bool = False
) -> tuple[Reference, list[Problem]]:
    """Opens the reference clips of a protocol; see `clips.choose`.

    Args:
        protocol: The protocol.
        place: The folder of the data set or of videos, or `tfds:NAME`.
        skip: Whether to skip videos that can't be read.
    """
    data: DataSet = open_folder(place) if protocol.data is None else open_data(protocol.data, place)
    clips, problems = choose(protocol, data, skip=skip)
    return Reference(protocol, data, clips), problems


def evaluate(
    protocol: Protocol,
    bench: Bench,
    reference: Reference,
    candidates: Candidates,
    output: epath.PathLike,
    about: Mapping[str, Any],
    *,
    draw: Draw | None = None,
    problems: Sequence[Problem] = (),
) -> list[Scores]:
    """Measures what is not measured yet, compares, and writes the report.

    With several processes, each measures its part; they share a folder, and process 0 compares.

    Args:
        protocol: The protocol.
        bench: The tools that clips are measured with.
        reference: The clips that others are compared with.
        candidates: The clips that are compared with them.
        output: Folder of the run.
        about: Further contents of the report.
        draw: Draws plots, if given.
        problems: Videos of the reference that were skipped.

    Returns:
        The numbers of each set; an empty list on processes other than 0.

    Raises:
        UserError: Clips can't be read, or too few are left. What was measured is kept.
    """
    output = as_path(output)
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        write_list(output / CLIPS, reference.clips)
    own = slice(process, None, processes)
    real = reference.items()
    looks: dict[str, Look] = {REFERENCE: as_they_are}
    problems = [*problems, *candidates.problems]
    problems += bench.measure(real[own], reading(reference.read), looks)
    problems += bench.measure(candidates.items[own], candidates.produce, candidates.sets)
    if processes > 1:
        distributed.wait_for_all("measured")
        bench.store.reread()
    if process != 0:
        distributed.wait_for_all("reported")
        return []

    by_set = {REFERENCE: real} | dict.fromkeys(candidates.sets, candidates.items)
    finished = {name: bench.finished([name]) for name in by_set}
    sets = _put_together(protocol, bench, by_set, finished, reference.clips)
    scores = [score(sets[name], sets[REFERENCE], protocol.measures) for name in candidates.sets]
    for one in sets.values():
        write_clips(output, one)
    plots = [] if draw is None else draw(output, scores, [sets[n] for n in by_set])
    # Only the process that failed to read a clip knows why.
    left_out = {
        item.name: "another process could not read it"
        for name, items in by_set.items()
        for item in items
        if item.key not in finished[name]
    } | {problem.name: problem.reason for problem in problems}
    more = {
        "clip_list_sha256": list_sha256(reference.clips),
        "reference_videos": len(sets[REFERENCE].clips),
        "left_out": left_out,
        "measures": {measure.name: dict(measure.settings) for measure in bench.measures},
        "measured_now": bench.spent,
    }
    write_report(output, protocol, scores, {**about, **more}, plots)
    if processes > 1:
        distributed.wait_for_all("reported")
    return scores


def _put_together(
    protocol: Protocol,
    bench: Bench,
    by_set: Mapping[str, Sequence[Item]],
    finished: Mapping[str, set[str]],
    clips: Sequence[Clip],
) -> dict[str, Measured]:
    """Returns the rows of each set; if sets are paired, only of the clips that all of them have."""
    there = {
        name: [item for item in items if item.key in finished[name]]
        for name, items in by_set.items()
    }
    if protocol.pairing == "names":
        common = set.intersection(*({item.name for item in items} for items in there.values()))
        there = {
            name: [item for item in items if item.name in common] for name, items in there.items()
        }
    groups = {clip.name: clip.group for clip in clips}
    sets = {}
    for name, items in there.items():
        if len(items) < 2:
            raise UserError(f"too few videos are left to compare: {len(items)} of {name}")
        rows = {m.name: bench.store.load(name, m, [i.key for i in items]) for m in bench.measures}
        sets[name] = measured(name, items, groups, rows, bench.measures)
    return sets
