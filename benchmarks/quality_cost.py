r"""Measures what fewer steps, other solvers and caches cost in quality, on held-out drawn clips.

    python benchmarks/quality_cost.py --folder=quality_cost --clips=128 --write_docs
    python benchmarks/quality_cost.py --folder=quality_cost --clips=512 --presets \
        --distilled=four --write_docs

The first command screens: each solver at 4, 8, 12 and 25 steps, and each cache with --cached, the
solver that screening favoured. The second compares the presets with 50 steps of DDIM and with DDIM
in as many passes, and distilled models with DDIM in as many steps; its differences are paired, clip
by clip, with bootstrap intervals. Clips, noise and the judgement of motion are those of
`demo_quality.py`. What is sampled and found lies in --folder, so the same command resumes: empty it
when the code that does so changes.

Passes are counted as in `passes.py`. All ways have the model's own guidance: the demo's is in force
for the first half of the steps.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cost_plots
import numpy as np
import timing
from absl import flags
from drawn_clips import (
    Drawn,
    draw,
    feature_distance,
    psnr,
    simple_features,
)
from keeping import KeepingGenerator, find_kept_changes
from passes import unet_passes
from tracking import shows

from dynamicrafter_jax import cli
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings, preset_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "sampling.md"

CHECKPOINT = flags.DEFINE_string("checkpoint", "demo", "The model.")
FOLDER = flags.DEFINE_string("folder", "quality_cost", "Where measurements are kept.")
CLIPS = flags.DEFINE_integer("clips", 128, "Clips of the test split.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
SHARE = flags.DEFINE_float("share", 0.3, "Of its way that a motion has to go to count.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes that look for what moved.")
CACHED = flags.DEFINE_string("cached", "unipc 12", "What caches are screened with; empty for none.")
PRESETS = flags.DEFINE_bool("presets", False, "Compare the presets instead of screening.")
DISTILLED = flags.DEFINE_multi_string("distilled", [], "A distilled model to compare with presets.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put table and plot into {DOCUMENT}.")

STEPS = (4, 8, 12, 25)
RESAMPLES = 2000
REFERENCE_STEPS = 50
REFERENCE = f"ddim {REFERENCE_STEPS}"

SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {"solver": "ddim", "eta": 0.0},
    "euler": {"solver": "euler"},
    "euler_ancestral": {"solver": "euler_ancestral", "eta": 1.0},
    "dpmpp_2m": {"solver": "dpmpp_2m"},
    "dpmpp_2m karras": {"solver": "dpmpp_2m", "spacing": "karras"},
    "dpmpp_2m_sde": {"solver": "dpmpp_2m_sde", "eta": 1.0},
    "unipc": {"solver": "unipc"},
    "unipc karras": {"solver": "unipc", "spacing": "karras"},
}
NOISY = ("ddim", "euler_ancestral", "dpmpp_2m_sde")  # where `eta` is above 0

CACHES: dict[str, dict[str, Any]] = {
    "deep 2": {"deep_cache_interval": 2},
    "deep 3": {"deep_cache_interval": 3},
    "deep 2, depth 2": {"deep_cache_interval": 2, "deep_cache_depth": 2},
    "reused guidance 2": {"guidance_reuse_interval": 2},
    "reused guidance 3": {"guidance_reuse_interval": 3},
    "guidance to 1/4": {"guidance_stop": 0.25},
    "guidance to 3/4": {"guidance_stop": 0.75},
    "guidance to the end": {"guidance_stop": 1.0},
    "guidance from 1/8": {"guidance_start": 0.125},
}


class Way(NamedTuple):
    """A way of sampling.

    Attributes:
        animate: The model.
        settings: What replaces its own settings.
    """

    animate: ImageToVideo
    settings: Mapping[str, Any]

    @property
    def passes(self) -> float:
        """Passes of the U-Net for a clip."""
        return unet_passes(self.animate, self.settings)

    @property
    def repeatable(self) -> bool:
        """Whether the first noise alone decides the clip."""
        chosen = SamplingSettings.from_config(self.animate.config.sampling, **self.settings)
        return chosen.eta == 0 or chosen.solver not in NOISY


class Measured(NamedTuple):
    """A way of sampling, measured clip by clip.

    Attributes:
        right: Whether the motion named is the motion made, (n,).
        features: `simple_features`, (n, d).
        psnr: Against the reference's clip from the same noise, in dB; None for the reference
            itself, and with fresh noise.
        passes: Passes of the U-Net for a clip.
        seconds: Time to sample a clip, of one batch.
    """

    right: np.ndarray
    features: np.ndarray
    psnr: float | None
    passes: float
    seconds: float


class Bench:
    """Measures ways of sampling on the same clips, and keeps what it found."""

    def __init__(self, animate: ImageToVideo, folder: Path, count: int) -> None:
        """Draws the clips for a model, whose `REFERENCE` others are compared with."""
        self._reference = ddim(animate, REFERENCE_STEPS)
        own = animate.config.sampling
        self.clips: list[Drawn] = [draw(i, own.num_frames, own.height) for i in range(count)]
        self.real = simple_features(np.stack([clip.video for clip in self.clips]))
        self._folder = folder

    def __call__(self, name: str, way: Way) -> Measured:
        """Returns the measurements of a way of sampling, by what the folder has of them."""
        generator = self._generator(way)
        videos = generator(self.clips)
        changes = find_kept_changes(self.clips, videos, PROCESSES.value, self._folder)
        right = [
            shows(
                change,
                clip.scene.motions,
                (len(clip.video) - 1) / clip.scene.fps,
                share=SHARE.value,
            )
            for clip, change in zip(self.clips, changes, strict=True)
        ]
        near = None
        if name != REFERENCE and way.repeatable:
            near = float(psnr(videos, self._generator(self._reference)(self.clips)).mean())
        found = Measured(
            np.asarray(right),
            simple_features(videos),
            near,
            way.passes,
            generator.seconds_per_clip(self.clips),
        )
        timing.say(f"{name}: {found.right.mean():.1%} right, {found.seconds:.2f} s a clip")
        return found

    def _generator(self, way: Way) -> KeepingGenerator:
        return KeepingGenerator(way.animate, BATCH.value, self._folder, **way.settings)

    def distance(self, found: Measured, rows: np.ndarray | slice = slice(None)) -> float:
        """Returns the Fréchet distance to the real clips, over some of them."""
        return feature_distance(self.real[rows], found.features[rows])

    def differences(self, found: Measured, other: Measured) -> dict[str, list[float]]:
        """Returns intervals of 95 % for what one loses against another on the same clips.

        `motion` is in points, and `distance` relative to the other's; above 0 is worse.
        """
        draw_rows = np.random.default_rng(0)
        count = len(self.clips)
        motion, distance = [], []
        for _ in range(RESAMPLES):
            rows = draw_rows.integers(0, count, count)
            motion.append(100 * (other.right[rows].mean() - found.right[rows].mean()))
        for _ in range(RESAMPLES // 10):  # each takes two square roots of a matrix
            rows = draw_rows.integers(0, count, count)
            distance.append(self.distance(found, rows) / self.distance(other, rows) - 1)
        return {
            "motion": [100 * float(other.right.mean() - found.right.mean()), *_interval(motion)],
            "distance": [
                self.distance(found) / self.distance(other) - 1,
                *_interval(distance),
            ],
        }


def screened(animate: ImageToVideo) -> dict[str, Way]:
    """Returns the reference, each solver at few steps, and each cache.

    Raises:
        UserError: What --cached names is none of them.
    """
    ways = {REFERENCE: {**SOLVERS["ddim"], "steps": REFERENCE_STEPS}}
    ways |= {
        f"{name} {steps}": {**settings, "steps": steps}
        for (name, settings), steps in itertools.product(SOLVERS.items(), STEPS)
    }
    if cached := CACHED.value:
        if cached not in ways:
            raise UserError(f"--cached={cached} is not screened: choose from {', '.join(ways)}")
        ways |= {
            f"{cached}, {name}": {**ways[cached], **settings} for name, settings in CACHES.items()
        }
    return {name: Way(animate, settings) for name, settings in ways.items()}


def compared(
    animate: ImageToVideo, students: Sequence[ImageToVideo]
) -> tuple[dict[str, Way], list[tuple[str, str]]]:
    """Returns the reference, presets and distilled models, and which to hold against which.

    `fast` is held against DDIM in as many passes, and a distilled model against DDIM in as many
    steps.

    Raises:
        UserError: Two distilled models take as many steps.
    """
    section = animate.config.sampling
    ways = {REFERENCE: ddim(animate, REFERENCE_STEPS)}
    ways |= {name: Way(animate, preset_of(section, name)) for name in ("balanced", "fast")}
    same_as = {"fast": steps_within(animate, ways["fast"].passes)}
    for student in students:
        steps = student.config.sampling.steps
        if f"distilled {steps}" in ways:
            raise UserError(f"two models of --distilled sample in {steps} steps: give one of them")
        ways[f"distilled {steps}"] = Way(student, {})
        same_as[f"distilled {steps}"] = steps
    for steps in same_as.values():
        ways[f"ddim {steps}"] = ddim(animate, steps)
    pairs = [(name, REFERENCE) for name in ways if name != REFERENCE]
    return ways, pairs + [(name, f"ddim {steps}") for name, steps in same_as.items()]


def steps_within(animate: ImageToVideo, passes: float) -> int:
    """Returns the most steps of DDIM that take no more than some passes of the U-Net."""
    return max(steps for steps in range(1, 51) if ddim(animate, steps).passes <= passes)


def ddim(animate: ImageToVideo, steps: int) -> Way:
    """Returns DDIM in some steps, without fresh noise."""
    return Way(animate, {**SOLVERS["ddim"], "steps": steps})


def summary(bench: Bench, found: Measured) -> dict[str, Any]:
    """Returns the mean measures of a way of sampling."""
    motion, distance = float(found.right.mean()), bench.distance(found)
    costs = {"passes": found.passes, "seconds": found.seconds}
    return {"motion": motion, "distance": distance, "psnr": found.psnr, **costs}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the measures in Markdown."""
    whole = found[REFERENCE]
    rows = [
        [
            name,
            f"{one['passes']:.1f}",
            f"{one['seconds'] / whole['seconds']:.2f}",
            f"{one['motion']:.1%}",
            f"{one['distance']:.2f}",
            "" if one["psnr"] is None else f"{one['psnr']:.1f} dB",
        ]
        for name, one in found.items()
    ]
    columns = ["", "passes", "seconds, relative", "motion right", "Fréchet distance", "to ddim 50"]
    return timing.markdown(columns, rows)


def lost(difference: Mapping[str, Sequence[float]]) -> str:
    """Returns a sentence of what `Bench.differences` found."""
    motion, distance = difference["motion"], difference["distance"]
    return (
        f"{motion[0]:.1f} points of motion are lost ({motion[1]:.1f} to {motion[2]:.1f}), the "
        f"Fréchet distance changes by {distance[0]:+.0%} ({distance[1]:+.0%} to {distance[2]:+.0%})"
    )


def _interval(values: Sequence[float]) -> list[float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def main(_: Sequence[str]) -> None:
    """Samples, measures, and prints the table."""
    if DISTILLED.value and not PRESETS.value:
        raise UserError("--distilled is for the comparison with presets: add --presets")
    animate = ImageToVideo.from_pretrained(CHECKPOINT.value)
    bench = Bench(animate, Path(FOLDER.value), CLIPS.value)
    students = [ImageToVideo.from_pretrained(model) for model in DISTILLED.value]
    ways, pairs = compared(animate, students) if PRESETS.value else (screened(animate), [])
    measured = {name: bench(name, way) for name, way in ways.items()}
    found = {name: summary(bench, one) for name, one in measured.items()}
    text = f"{timing.made_with()} On {CLIPS.value} clips.\n\n{table(found)}"
    against = {
        f"{name} against {other}": bench.differences(measured[name], measured[other])
        for name, other in pairs
    }
    if against:
        text += "\n\n" + "\n".join(f"- {names}: {lost(one)}" for names, one in against.items())
    timing.say(text)
    part = "presets" if PRESETS.value else "screening"
    timing.write_json(Path(FOLDER.value) / f"{part}.json", {"ways": found, "against": against})
    if WRITE_DOCS.value:
        timing.write_docs(f"quality and cost: {part}", text, DOCUMENT)
        if not PRESETS.value:
            cost_plots.write(found)


if __name__ == "__main__":
    cli.run(main)
