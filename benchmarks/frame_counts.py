"""Compares the rules for image tokens, `projector.other_lengths`, at lengths not trained on.

    python benchmarks/frame_counts.py --clips=64 --frames=8,12,24 --write_docs

Clips, flags, judgement and distance are those of `demo_quality.py`. The same clips are sampled with
each rule, from the same noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timing
from absl import flags
from demo_quality import (
    BATCH,
    CHECKPOINT,
    CLIPS,
    JSON,
    PROCESSES,
    SHARE,
    WRITE_DOCS,
    distance,
    judge,
)
from drawn_clips import Generator, draw, find_changes, psnr

from dynamicrafter_jax import cli
from dynamicrafter_jax.models.resampler import OTHER_LENGTHS
from dynamicrafter_jax.pipeline import ImageToVideo

DOCUMENT = timing.DOCUMENT.with_name("architecture.md")
SECTION = "frame counts"

FRAMES = flags.DEFINE_list("frames", ["8", "12", "24"], "Frames of a clip, each a row.")


def animate_under(rule: str, model: ImageToVideo) -> ImageToVideo:
    """Returns the same model with another rule."""
    config = model.config.copy_and_resolve_references()
    config.projector.other_lengths = rule
    return ImageToVideo(config, model.params)


def measure(model: ImageToVideo, num_frames: int) -> dict[str, float]:
    """Samples clips of `num_frames` and compares them with the true ones."""
    clips = [draw(i, num_frames, model.config.sampling.height) for i in range(CLIPS.value)]
    videos = Generator(model, BATCH.value, num_frames=num_frames)(clips)
    changes = find_changes(clips, videos, PROCESSES.value)
    real = np.stack([clip.video for clip in clips])
    return {
        "right": judge(clips, changes, SHARE.value).overall,
        "psnr": float(psnr(videos, real).mean()),
        "distance": distance(real, videos),
    }


def table(found: dict[int, dict[str, Any]], clips: int) -> str:
    """Returns the measurements in Markdown."""
    lines = [
        "| frames | rule | motion right | PSNR to the true clip | Fréchet distance |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {frames} | {rule} | {row['right']:.1%} | {row['psnr']:.2f} dB | {row['distance']:.2f} |"
        for frames, rules in found.items()
        for rule, row in rules.items()
    ]
    return "\n".join([*lines, "", f"On {clips} clips of the demo model."])


def main(_: Sequence[str]) -> None:
    """Samples, measures, and prints the table."""
    model = ImageToVideo.from_pretrained(CHECKPOINT.value)
    models = {rule: animate_under(rule, model) for rule in OTHER_LENGTHS}
    found = {
        int(frames): {rule: measure(models[rule], int(frames)) for rule in OTHER_LENGTHS}
        for frames in FRAMES.value
    }
    text = f"{timing.made_with()}\n\n{table(found, CLIPS.value)}"
    timing.say(text)
    if JSON.value is not None:
        timing.write_json(JSON.value, found)
    if WRITE_DOCS.value:
        timing.write_docs(SECTION, text, DOCUMENT)


if __name__ == "__main__":
    cli.run(main)
