r"""Measures how well a model follows its conditions on held-out drawn clips, and what each adds.

    python benchmarks/demo_quality.py --checkpoint=demo --write_docs

    python -m dynamicrafter_jax.convert --input=runs/demo --step=3000 --output=demo_3000
    python benchmarks/demo_quality.py --curve=3000=demo_3000 --curve=6000=demo --write_docs

Clips are the first of the test split of `data/synthetic`, whose numbers and photographs are never
trained on. Each is sampled from its first frame, with its caption and its frames per second. What
moved is found by drawing the known scene again (`tracking.py`), without using the caption. A clip
is right if every motion named in its caption goes the right way, by at least --share of the
distance in a real clip of this speed, and nothing else moves that far.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import quality_plots
import scipy.stats
import timing
from absl import flags
from drawn_clips import (
    Ablation,
    Drawn,
    Generator,
    Videos,
    draw,
    feature_distance,
    find_changes,
    psnr,
    reconstruct,
    simple_features,
)
from tracking import Change, made, shows

from dynamicrafter_jax import cli
from dynamicrafter_jax.data.synthetic import MOTIONS
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo

DOCUMENT = Path(__file__).parent.parent / "docs" / "results.md"
SECTION = "demo quality"

CHECKPOINT = flags.DEFINE_string("checkpoint", "demo", "The model.")
CLIPS = flags.DEFINE_integer("clips", 512, "Clips of the main measures.")
ABLATED = flags.DEFINE_integer("ablated_clips", 128, "Clips of each ablation and of the curve.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
SHARE = flags.DEFINE_float("share", 0.3, "Of its way that a motion has to go to count.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes that look for what moved.")
CURVE = flags.DEFINE_multi_string("curve", [], "STEP=MODEL: the model at a step of training.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put tables and plots into {DOCUMENT}.")


class Motions(NamedTuple):
    """How many clips show the named motions.

    Attributes:
        overall: Share of clips that are right.
        named: Share of named motions that go the right way, far enough, whatever else moves.
        by_motion: For each motion, the share of clips naming it that are right; "still" is for
            clips that name none.
        named_by_motion: For each motion, how often it goes the right way, far enough, when named.
        speed: Rank correlation between the speed of named motions and what it should be.
    """

    overall: float
    named: float
    by_motion: dict[str, float]
    named_by_motion: dict[str, float]
    speed: float


def judge(clips: Sequence[Drawn], changes: Sequence[Change], share: float) -> Motions:
    """Compares what changed in clips with what their captions name."""
    right: dict[str, list[bool]] = {name: [] for name in ("still", *MOTIONS)}
    named: dict[str, list[bool]] = {name: [] for name in MOTIONS}
    every, wanted, found = [], [], []
    for clip, change in zip(clips, changes, strict=True):
        scene = clip.scene
        seconds = (len(clip.video) - 1) / scene.fps
        is_right = shows(change, scene.motions, seconds, share=share)
        every.append(is_right)
        for name in scene.motions or ("still",):
            right[name].append(is_right)
        for motion in scene.motions:
            wanted.append(seconds)
            found.append(made(change, motion))
            named[motion].append(found[-1] >= share * seconds)
    return Motions(
        float(np.mean(every)),
        float(np.mean([value for values in named.values() for value in values])),
        {name: float(np.mean(values)) for name, values in right.items() if values},
        {name: float(np.mean(values)) for name, values in named.items() if values},
        float(np.asarray(scipy.stats.spearmanr(wanted, found))[0]),
    )


def distance(real: Videos, other: Videos) -> float:
    """Returns the Fréchet distance of simple features, scaled to unit spread over real clips."""
    return feature_distance(simple_features(real), simple_features(other))


class Sampled(NamedTuple):
    """A model's samples for clips.

    Attributes:
        videos: The sampled videos.
        changes: What has changed in each.
        seconds: Mean time to sample one.
    """

    videos: Videos
    changes: list[Change]
    seconds: float

    def first(self, count: int) -> "Sampled":
        """Returns the samples of only the first clips."""
        return self._replace(videos=self.videos[:count], changes=self.changes[:count])


def sample(generator: Generator, clips: list[Drawn], without: Ablation = "nothing") -> Sampled:
    """Samples videos, and finds what moved in them."""
    started = time.perf_counter()
    videos = generator(clips, without=without)
    seconds = (time.perf_counter() - started) / len(clips)
    return Sampled(videos, find_changes(clips, videos, PROCESSES.value), seconds)


def measure_main(
    generator: Generator, animate: ImageToVideo, clips: list[Drawn], sampled: Sampled
) -> dict[str, Any]:
    """Returns the measures that have a target, and the numbers they are compared with."""
    real = np.stack([clip.video for clip in clips])
    first = real[:, 0]
    between = generator(clips, interpolate=True)
    faded = crossfade(real)
    middle = slice(1, -1)
    still = np.repeat(first[:, None], real.shape[1], axis=1)
    return {
        "motions": judge(clips, sampled.changes, SHARE.value)._asdict(),
        "real": judge(clips, find_changes(clips, real, PROCESSES.value), SHARE.value)._asdict(),
        "first_frame_db": first_frame_db(clips, sampled.videos),
        "vae_db": float(psnr(reconstruct(animate, first), first).mean()),
        "between_db": float(psnr(between[:, middle], real[:, middle]).mean()),
        "crossfade_db": float(psnr(faded[:, middle], real[:, middle]).mean()),
        "distance": distance(real, sampled.videos),
        "still_distance": distance(real, still),
        "seconds_per_clip": sampled.seconds,
        "speeds": [
            [(len(clip.video) - 1) / clip.scene.fps, made(change, motion)]
            for clip, change in zip(clips, sampled.changes, strict=True)
            for motion in clip.scene.motions
        ],
    }


def measure_ablation(clips: list[Drawn], sampled: Sampled) -> dict[str, float]:
    """Returns the measures of samples made without one of the conditions."""
    return {
        "motion": judge(clips, sampled.changes, SHARE.value).overall,
        "first_frame_db": first_frame_db(clips, sampled.videos),
    }


def measure_training(clips: list[Drawn], sampled: Sampled) -> dict[str, float]:
    """Returns one model's values for the curve over training."""
    real = np.stack([clip.video for clip in clips])
    return {
        "motion": judge(clips, sampled.changes, SHARE.value).overall,
        "distance": distance(real, sampled.videos),
    }


def first_frame_db(clips: Sequence[Drawn], videos: Videos) -> float:
    """Returns the mean PSNR of first frames against their images, in dB."""
    return float(psnr(videos[:, 0], np.stack([clip.video[0] for clip in clips])).mean())


def crossfade(videos: Videos) -> Videos:
    """Returns videos that fade from the first to the last frame."""
    t = videos.shape[1]
    share = (np.arange(t) / (t - 1))[None, :, None, None, None]
    ends = videos[:, [0, -1]].astype(np.float64)
    return np.round(ends[:, :1] * (1 - share) + ends[:, 1:] * share).astype(np.uint8)


def tables(found: Mapping[str, Any]) -> str:
    """Returns the measurements in Markdown."""
    main, ablated = found["main"], found["ablated"]
    few = found["ablated_clips"]
    rows = [
        ("motion named is the motion made", f"{main['motions']['overall']:.1%}", "95 %"),
        ("the same, found in the real clips", f"{main['real']['overall']:.1%}", ""),
        ("what is named goes the right way, whatever else moves",
         f"{main['motions']['named']:.1%}", ""),
        ("first frame against the image", f"{main['first_frame_db']:.2f} dB",
         f"{main['vae_db'] - 1.5:.2f} dB: the VAE's own less 1.5"),
        ("the VAE's own", f"{main['vae_db']:.2f} dB", "28 dB"),
        ("speed follows `fs`, rank correlation", f"{main['motions']['speed']:.3f}", "0.8"),
        ("interpolation, frames between", f"{main['between_db']:.2f} dB",
         f"{main['crossfade_db'] + 3:.2f} dB: 3 above cross-fading"),
        ("Fréchet distance of simple features", f"{main['distance']:.2f}",
         f"below {main['still_distance']:.2f}, that of still images"),
    ]  # fmt: skip
    lines = ["| measure | reached | target |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"On {found['clips']} clips; {main['seconds_per_clip']:.2f} s a clip, "
              f"{found['steps']} steps.", "",
              "| motion | right | right in real clips | goes the right way, whatever else moves |",
              "|---|---|---|---|"]  # fmt: skip
    real, named = main["real"]["by_motion"], main["motions"]["named_by_motion"]
    lines += [
        f"| {name.replace('_', ' ')} | {value:.1%} | {real[name]:.1%} | "
        + (f"{named[name]:.1%} |" if name in named else "|")
        for name, value in main["motions"]["by_motion"].items()
    ]
    lines += ["", f"| without, on {few} clips | motion right | first frame |", "|---|---|---|"]
    lines += [
        f"| {_WITHOUT[name]} | {values['motion']:.1%} | {values['first_frame_db']:.2f} dB |"
        for name, values in ablated.items()
    ]
    if found["curve"]:
        lines += ["", f"| training step | motion right, {few} clips | Fréchet distance |",
                  "|---|---|---|"]  # fmt: skip
        lines += [
            f"| {step} | {values['motion']:.1%} | {values['distance']:.2f} |"
            for step, values in found["curve"].items()
        ]
    return "\n".join(lines)


_WITHOUT: dict[Ablation, str] = {
    "nothing": "nothing",
    "prompt": "a prompt (an empty one)",
    "text": "text tokens",
    "concat": "the concatenated latents",
    "image": "image tokens",
}


def _curve(entries: Sequence[str]) -> dict[str, str]:
    """Returns the models given by `--curve`, by step."""
    steps: dict[str, str] = {}
    for entry in entries:
        step, _, model = entry.partition("=")
        if not (step.isdecimal() and model):
            raise UserError(f"--curve={entry} is not STEP=MODEL, as 3000=demo_3000")
        if step in steps:
            raise UserError(f"--curve names two models of step {step}")
        steps[step] = model
    return steps


def _keep(found: Mapping[str, Any]) -> None:
    """Writes the results so far, since all of it takes an hour and the last part may fail."""
    if JSON.value is not None:
        timing.write_json(JSON.value, found)


def main(_: Sequence[str]) -> None:
    """Samples, measures, and prints the tables."""
    steps = _curve(CURVE.value)
    if WRITE_DOCS.value and not DOCUMENT.exists():  # before all the work
        raise UserError(f"{DOCUMENT} is missing: write it, with marks of {SECTION!r}")
    animate = ImageToVideo.from_pretrained(CHECKPOINT.value)
    curve = {  # read now, since what is missing should not be missed in an hour
        step: animate if name == CHECKPOINT.value else ImageToVideo.from_pretrained(name)
        for step, name in steps.items()
    }
    chosen = animate.config.sampling
    clips = [draw(i, chosen.num_frames, chosen.height) for i in range(CLIPS.value)]
    few = clips[: ABLATED.value]
    generator = Generator(animate, BATCH.value)
    found: dict[str, Any] = {
        "clips": len(clips),
        "ablated_clips": len(few),
        "steps": chosen.steps,
        "ablated": {},
        "curve": {},
    }
    sampled = sample(generator, clips)
    found["main"] = measure_main(generator, animate, clips, sampled)
    found["ablated"]["nothing"] = measure_ablation(few, sampled.first(len(few)))
    _keep(found)
    for name in _WITHOUT:
        if name != "nothing":
            found["ablated"][name] = measure_ablation(few, sample(generator, few, name))
            _keep(found)
    for step, model in curve.items():
        known = model is animate
        there = sampled.first(len(few)) if known else sample(Generator(model, BATCH.value), few)
        found["curve"][step] = measure_training(few, there)
        _keep(found)
    table = f"{timing.made_with()}\n\n{tables(found)}"
    timing.say(table)
    if WRITE_DOCS.value:
        timing.write_docs(SECTION, table, DOCUMENT)
        quality_plots.write(found)


if __name__ == "__main__":
    cli.run(main)
