"""Animates a photograph that ships with the package, with a model small enough for any machine.

    python -m dynamicrafter_jax.demo

writes a video and, for a look without a player, its frames on one sheet. The model's weights are
random, so the result shows that the whole path runs, not what a trained model makes of it.
"""

import functools
import time
from collections.abc import Sequence
from importlib import resources

from absl import flags
from etils import epath

from dynamicrafter_jax import cli, media, provenance
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.progress import ProgressBar

CONFIG = "demo"
PHOTOGRAPH = "rocket.jpg"
PROMPT = "a rocket lifting off from its launch pad"

UNTRAINED = """\
This model is untrained: its weights are random. The frames show that the whole path runs, from
the photograph and the prompt to a video; they are noise, not a picture. For real videos give the
released weights to sample.py: see README.md."""


def main(output_dir: flags.FlagHolder[str], _: Sequence[str]) -> None:
    """Runs the whole path on the photograph and says where to look."""
    started = time.perf_counter()
    video = epath.Path(output_dir.value) / f"{epath.Path(PHOTOGRAPH).stem}.mp4"
    sheet = video.with_suffix(".png")
    media.check_output(video)
    with resources.as_file(resources.files("dynamicrafter_jax") / "assets" / PHOTOGRAPH) as path:
        photograph = media.read_picture(path)

    animate = ImageToVideo.from_random(CONFIG)
    with ProgressBar() as progress:
        frames = animate(photograph, PROMPT, progress=progress)

    media.write_video(video, frames, animate.config.sampling.video_fps)
    caption = f'"{PROMPT}" - untrained model, random weights'
    media.write_png(
        sheet, media.contact_sheet(frames, columns=8, picture=photograph, caption=caption)
    )
    t, h, w, _ = frames.shape
    print(
        f"{video}: the video, {t} frames of {w}x{h}\n"
        f"{sheet}: the photograph and all frames on one sheet\n"
        f"{time.perf_counter() - started:.1f} s, {progress.seconds_per_step:.3f} s a step, "
        f"peak memory {provenance.peak_memory() / 2**30:.2f} GiB\n\n{UNTRAINED}"
    )


def define_flags() -> flags.FlagHolder[str]:
    """Defines the flag of the command line, which other entry points must not inherit."""
    return flags.DEFINE_string("output_dir", "demo", "Folder of the video and the sheet.")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
