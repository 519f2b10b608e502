r"""Measures how well a model follows its conditions on held-out drawn clips, and what each adds.

    python benchmarks/demo_quality.py --checkpoint=demo --write_docs

    python -m dynamicrafter_jax.convert --input=runs/demo --step=3000 --output=demo_3000
    python benchmarks/demo_quality.py --curve=24000=demo_3000 --curve=48000=demo --write_docs

Clips are the first of the test split of `data/synthetic`, whose numbers and photographs are never
trained on. Each is sampled from its first frame, with its caption and its frames per second. What
moved is found by drawing the known scene again (`tracking.py`), without using the caption. A clip
is right if every motion named in its caption goes the right way, by at least --share of the
distance in a real clip of this speed, and nothing else moves that far.

--curve adds models by the clips that they had seen in training, sampled as this one; --before adds
a model to compare with on --ablated_clips, sampled as its own config says. What is sampled and
found lies in --folder, so the same command resumes: empty it when the code that does so changes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import quality_plots
import timing
from absl import flags
from demo_tables import WITHOUT, tables
from drawn_clips import (
    Ablation,
    Drawn,
    Generator,
    Videos,
    draw,
    psnr,
    reconstruct,
)
from jaxtyping import PyTree
from judging import (
    crossfade,
    distance,
    first_frame_db,
    judge,
    last_frame_db,
    seconds_of,
    sharpness,
    videos_of,
)
from keeping import KeepingGenerator, find_kept_changes
from tracking import Change, made

from dynamicrafter_jax import cli
from dynamicrafter_jax.data.synthetic import MOTIONS
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings

DOCUMENT = Path(__file__).parent.parent / "docs" / "results.md"
SECTION = "demo quality"

CHECKPOINT = flags.DEFINE_string("checkpoint", "demo", "The model.")
CLIPS = flags.DEFINE_integer("clips", 512, "Clips of the main measures.")
ABLATED = flags.DEFINE_integer("ablated_clips", 128, "Clips of ablations, curve, --before.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
FOLDER = flags.DEFINE_string(
    "folder", "outputs/demo_quality", "Where samples, and what moved, are kept."
)
SHARE = flags.DEFINE_float("share", 0.3, "Of its way that a motion has to go to count.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes that look for what moved.")
CURVE = flags.DEFINE_multi_string("curve", [], "CLIPS=MODEL: a model, by the clips it has seen.")
BEFORE = flags.DEFINE_string("before", None, "A model to compare with on --ablated_clips.")
EACH = flags.DEFINE_integer("each_clips", 64, "Clips of each motion by itself; 0 for none.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put tables and plots into {DOCUMENT}.")


class Sampled(NamedTuple):
    """A model's samples for clips.

    Attributes:
        videos: The sampled videos.
        changes: What has changed in each.
    """

    videos: Videos
    changes: list[Change]

    def first(self, count: int) -> "Sampled":
        """Returns the samples of only the first clips."""
        return Sampled(self.videos[:count], self.changes[:count])


def generator_of(animate: ImageToVideo, **settings: Any) -> Generator:
    """Returns what samples with a model, and keeps the videos in --folder."""
    return KeepingGenerator(animate, BATCH.value, Path(FOLDER.value), **settings)


def sample(generator: Generator, clips: list[Drawn], without: Ablation = "nothing") -> Sampled:
    """Samples videos, and finds what moved in them."""
    videos = generator(clips, without=without)
    return Sampled(videos, changes_in(clips, videos))


def changes_in(clips: list[Drawn], videos: Videos) -> list[Change]:
    """Returns what has changed in each video, and keeps it in --folder."""
    return find_kept_changes(clips, videos, PROCESSES.value, Path(FOLDER.value))


def measure_main(
    animate: ImageToVideo, clips: list[Drawn], sampled: Sampled, between: Videos
) -> dict[str, Any]:
    """Returns what a model reaches of the measures that have a target.

    Args:
        animate: The model.
        clips: The clips.
        sampled: Its samples for them.
        between: Its interpolations between their first and last frames.
    """
    real = videos_of(clips)
    moving = np.asarray([bool(clip.scene.motions) for clip in clips])
    middle = slice(1, -1)
    return {
        "motions": judge(clips, sampled.changes, SHARE.value)._asdict(),
        "first_frame_db": first_frame_db(clips, sampled.videos),
        "last_frame_db": last_frame_db(clips, sampled.videos),
        "sharpness": sharpness(real, sampled.videos),
        "vae_db": float(psnr(reconstruct(animate, real[:, 0]), real[:, 0]).mean()),
        "between_db": float(psnr(between[moving, middle], real[moving, middle]).mean()),
        "distance": distance(real, sampled.videos),
        "megabytes": megabytes(animate.params),
        "speeds": [
            [seconds_of(clip), made(change, motion)]
            for clip, change in zip(clips, sampled.changes, strict=True)
            for motion in clip.scene.motions
        ],
    }


def measure_real(clips: list[Drawn]) -> dict[str, Any]:
    """Returns what the judge says of real clips, and what plain ways reach."""
    real = videos_of(clips)
    moving = np.asarray([bool(clip.scene.motions) for clip in clips])
    middle = slice(1, -1)
    still = np.repeat(real[:, :1], real.shape[1], axis=1)
    return {
        "real": judge(clips, changes_in(clips, real), SHARE.value)._asdict(),
        "crossfade_db": float(psnr(crossfade(real)[moving, middle], real[moving, middle]).mean()),
        "still_distance": distance(real, still),
    }


def measure_each(generator: Generator, frames: int, side: int, count: int) -> dict[str, Any]:
    """Returns how often each motion by itself is right, sampled and real."""
    clips = [
        draw(number, frames, side, motions=(motion,))
        for motion in MOTIONS
        for number in range(count)
    ]
    changes = sample(generator, clips).changes
    real = changes_in(clips, videos_of(clips))
    return {
        "made": judge(clips, changes, SHARE.value)._asdict(),
        "real": judge(clips, real, SHARE.value)._asdict(),
    }


def measure_ablation(clips: list[Drawn], sampled: Sampled) -> dict[str, float]:
    """Returns the measures of samples made without one of the conditions."""
    return {
        "motion": judge(clips, sampled.changes, SHARE.value).overall,
        "first_frame_db": first_frame_db(clips, sampled.videos),
    }


def measure_training(clips: list[Drawn], sampled: Sampled) -> dict[str, float]:
    """Returns one model's values for the curve over training."""
    return {
        "motion": judge(clips, sampled.changes, SHARE.value).overall,
        "distance": distance(videos_of(clips), sampled.videos),
    }


def megabytes(params: PyTree) -> float:
    """Returns the size of parameters in bfloat16, as the package holds them."""
    return sum(2 * leaf.size for leaf in jax.tree.leaves(params)) / 1e6


def _curve(entries: Sequence[str]) -> dict[str, str]:
    """Returns the models given by `--curve`, by the clips that they have seen in training."""
    models: dict[str, str] = {}
    for entry in entries:
        seen, _, model = entry.partition("=")
        if not (seen.isdecimal() and model):
            raise UserError(f"--curve={entry} is not CLIPS=MODEL, as 24000=demo_3000")
        if seen in models:
            raise UserError(f"--curve names two models of {seen} clips")
        models[seen] = model
    return models


def _keep(found: Mapping[str, Any]) -> None:
    """Writes the results so far, since all of it takes an hour and the last part may fail."""
    if JSON.value is not None:
        timing.write_json(JSON.value, found)


def main(_: Sequence[str]) -> None:
    """Samples, measures, and prints the tables."""
    models = _curve(CURVE.value)
    if WRITE_DOCS.value and not DOCUMENT.exists():  # before all the work
        raise UserError(f"{DOCUMENT} is missing: write it, with marks of {SECTION!r}")
    animate = ImageToVideo.from_pretrained(CHECKPOINT.value)
    # Read now, since what is missing should not be missed in an hour.
    before = ImageToVideo.from_pretrained(BEFORE.value) if BEFORE.value else None
    curve = {
        seen: animate if name == CHECKPOINT.value else ImageToVideo.from_pretrained(name)
        for seen, name in models.items()
    }
    chosen = animate.config.sampling
    clips = [draw(i, chosen.num_frames, chosen.height) for i in range(CLIPS.value)]
    few = clips[: ABLATED.value]
    generator = generator_of(animate)
    alike = dataclasses.asdict(SamplingSettings.from_config(chosen))
    found: dict[str, Any] = {
        "clips": len(clips),
        "ablated_clips": len(few),
        "each_clips": EACH.value,
        "still_share": float(np.mean([not clip.scene.motions for clip in few])),
        "steps": chosen.steps,
        "before": None,
        "each": None,
        "ablated": {},
        "curve": {},
    }
    sampled = sample(generator, clips)
    found |= measure_real(clips)
    between = generator(clips, interpolate=True)
    found["main"] = measure_main(animate, clips, sampled, between)
    found["seconds_per_clip"] = generator.seconds_per_clip(clips)
    found["ablated"]["nothing"] = measure_ablation(few, sampled.first(len(few)))
    _keep(found)
    for name in WITHOUT:
        if name != "nothing":
            found["ablated"][name] = measure_ablation(few, sample(generator, few, name))
            _keep(found)
    if EACH.value:
        found["each"] = measure_each(generator, chosen.num_frames, chosen.height, EACH.value)
        _keep(found)
    for seen, model in curve.items():
        if model is animate:
            there = sampled.first(len(few))
        else:
            there = sample(generator_of(model, **alike), few)
        found["curve"][seen] = measure_training(few, there)
        _keep(found)
    if before is not None:
        old = generator_of(before)
        found["before"] = [
            measure_main(animate, few, sampled.first(len(few)), between[: len(few)]),
            measure_main(before, few, sample(old, few), old(few, interpolate=True)),
        ]
        _keep(found)
    table = f"{timing.made_with()}\n\n{tables(found)}"
    timing.say(table)
    if WRITE_DOCS.value:
        timing.write_docs(SECTION, table, DOCUMENT)
        quality_plots.write(found)


if __name__ == "__main__":
    cli.run(main)
