r"""Measures what guidance does to drawn clips, to choose that of a model's config.

    python benchmarks/guidance.py --checkpoint=demo --write_docs

Clips are the first of the validation split: the clips that `demo_quality.py` measures should not be
those that a setting was chosen on. What is measured, and how, is as there.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timing
from absl import flags
from drawn_clips import Drawn, Generator, draw, find_changes
from judging import distance, first_frame_db, judge, last_frame_db, sharpness, videos_of

from dynamicrafter_jax import cli
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo

DOCUMENT = Path(__file__).parent.parent / "docs" / "results.md"
SECTION = "guidance"

CHECKPOINT = flags.DEFINE_string("checkpoint", "demo", "The model.")
SCALES = flags.DEFINE_list("scales", ["1", "2", "3", "5", "7.5"], "Guidance scales.")
RESCALES = flags.DEFINE_list("rescales", ["0.7"], "Guidance rescales.")
STOPS = flags.DEFINE_list("stops", ["1"], "Shares of the run that guidance ends at.")
CLIPS = flags.DEFINE_integer("clips", 96, "Clips of the validation split.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
SHARE = flags.DEFINE_float("share", 0.3, "Of its way that a motion has to go to count.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes that look for what moved.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put the table into {DOCUMENT}.")


def measure(animate: ImageToVideo, clips: list[Drawn], **settings: float) -> dict[str, float]:
    """Returns the measures of a model's samples under settings of its own but for these."""
    videos = Generator(animate, BATCH.value, **settings)(clips)
    motions = judge(clips, find_changes(clips, videos, PROCESSES.value), SHARE.value)
    return {
        **settings,
        "motion": motions.overall,
        "single": motions.single,
        "first_frame_db": first_frame_db(clips, videos),
        "last_frame_db": last_frame_db(clips, videos),
        "sharpness": sharpness(videos_of(clips), videos),
        "distance": distance(videos_of(clips), videos),
    }


def table(found: Sequence[Mapping[str, float]]) -> str:
    """Returns measurements in Markdown."""
    lines = [
        "| guidance scale | rescale | of the run | motion right | one motion in the clip | "
        "first frame | last frame | gradient | Fréchet distance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['guidance_scale']:g} | {one['guidance_rescale']:g} | {one['guidance_stop']:.0%} | "
        f"{one['motion']:.1%} | {one['single']:.1%} | {one['first_frame_db']:.2f} dB | "
        f"{one['last_frame_db']:.2f} dB | {one['sharpness']:.0%} | {one['distance']:.2f} |"
        for one in found
    ]
    return "\n".join(lines)


def main(_: Sequence[str]) -> None:
    """Samples, measures, and prints the table."""
    settings = itertools.product(
        _numbers("scales", SCALES.value),
        _numbers("rescales", RESCALES.value),
        _numbers("stops", STOPS.value),
    )
    animate = ImageToVideo.from_pretrained(CHECKPOINT.value)
    chosen = animate.config.sampling
    clips = [
        draw(i, chosen.num_frames, chosen.height, split="validation") for i in range(CLIPS.value)
    ]
    found: list[dict[str, Any]] = []
    for scale, rescale, stop in settings:
        guidance = {"guidance_scale": scale, "guidance_rescale": rescale, "guidance_stop": stop}
        found.append(measure(animate, clips, **guidance))
        timing.say(table(found[-1:]).splitlines()[-1])
    text = f"{timing.made_with()}\n\n{table(found)}\n\nOn {len(clips)} clips, {chosen.steps} steps."
    timing.say(text)
    if JSON.value is not None:
        timing.write_json(JSON.value, {"clips": len(clips), "measured": found})
    if WRITE_DOCS.value:
        timing.write_docs(SECTION, text, DOCUMENT)


def _numbers(flag: str, words: Sequence[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"--{flag} is {','.join(words)}: give numbers, as 1,3,7.5") from error


if __name__ == "__main__":
    cli.run(main)
