"""Animates a photograph and a drawn scene, with the small model that ships with the package.

    python -m dynamicrafter_jax.demo

writes two videos, and two more of what happens between two pictures. To look at without a player,
there is a sheet with the picture and frames of each. The model was trained only on drawn clips: it
moves what is in a picture as the prompt says. It makes frames of 64 pixels, which --scale enlarges.
"""

import functools
import time
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from dynamicrafter_jax import cli

# isort: split
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8

from dynamicrafter_jax import media
from dynamicrafter_jax.data.synthetic import Renderer, draw_scene, trajectory
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.runtime import provenance
from dynamicrafter_jax.sampling.progress import ProgressBar
from dynamicrafter_jax.weights.names import DEMO

_PROMPT = "the camera zooms in"
_CLIP = 4  # in the test split, which is never trained on
_CLOSER = 0.65  # of a photograph's side: what an interpolation ends with


class DemoFlags(NamedTuple):
    """The command's flags.

    Attributes:
        output_dir: Folder for the results.
        scale: Whole factor of the videos' sides.
    """

    output_dir: flags.FlagHolder[str]
    scale: flags.FlagHolder[int]


class Still(NamedTuple):
    """A picture to animate.

    Attributes:
        name: Name of the files to write.
        picture: The first frame.
        prompt: What happens in the video.
        end: The last frame, if it is given too.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    prompt: str
    end: UInt8[np.ndarray, "h w 3"] | None = None


def photograph() -> Still:
    """Returns a photograph that ships with the package and was not trained on."""
    return Still("coffee", _asset("coffee.jpg"), _PROMPT)


def drawn(clip: int, side: int) -> Still:
    """Returns the start of a clip in the test split, `side` pixels high and wide."""
    return drawn_ends(clip, side, 1)._replace(name="drawn", end=None)


def two_crops() -> Still:
    """Returns another photograph, and its middle to end with."""
    whole = _asset("rocket.jpg")
    h, w, _ = whole.shape
    side = min(h, w)
    square = whole[(h - side) // 2 :, (w - side) // 2 :][:side, :side]
    edge = round(side * (1 - _CLOSER) / 2)
    return Still("rocket_between", square, _PROMPT, square[edge:-edge, edge:-edge])


def drawn_ends(clip: int, side: int, num_frames: int) -> Still:
    """Returns the first and the last frame of a clip in the test split."""
    scene = draw_scene(clip, "test")
    poses, renderer = trajectory(scene, num_frames), Renderer(scene, side, side)
    first, last = (renderer.frame(poses.pose(frame)) for frame in (0, num_frames - 1))
    return Still("drawn_between", first, scene.caption, last)


def _asset(name: str) -> UInt8[np.ndarray, "h w 3"]:
    with resources.as_file(resources.files("dynamicrafter_jax") / "assets" / name) as path:
        return media.read_picture(path)


def main(demo: DemoFlags, _: Sequence[str]) -> None:
    """Animates pictures in two batches, and prints where the results are."""
    started = time.perf_counter()
    folder = epath.Path(demo.output_dir.value)
    media.check_output(folder / f"{photograph().name}.mp4")

    animate = ImageToVideo.from_pretrained(DEMO)
    own = animate.config.sampling
    # Batches of one size, so that what denoises is compiled once.
    batches = (
        [photograph(), drawn(_CLIP, own.height)],
        [two_crops(), drawn_ends(_CLIP, own.height, own.num_frames)],
    )
    with ProgressBar() as progress:
        for stills in batches:
            ends = [still.end for still in stills if still.end is not None]
            videos = animate(
                [still.picture for still in stills],
                [still.prompt for still in stills],
                end_image=ends or None,
                progress=progress,
            )
            for still, video in zip(stills, videos, strict=True):
                _write(folder, still, video, own.video_fps, demo.scale.value)
    print(
        f"{time.perf_counter() - started:.1f} s, {progress.seconds_per_step:.3f} s a step, "
        f"peak memory {provenance.peak_memory() / 2**30:.2f} GiB"
    )


def _write(
    folder: epath.Path,
    still: Still,
    video: UInt8[np.ndarray, "t h w 3"],
    video_fps: float,
    scale: int,
) -> None:
    """Writes a video and its sheet, and says where they are."""
    file, sheet = (folder / f"{still.name}{suffix}" for suffix in (".mp4", ".png"))
    media.write_video(file, video.repeat(scale, axis=1).repeat(scale, axis=2), video_fps)
    caption = f'"{still.prompt}"' + (", between two pictures" if still.end is not None else "")
    media.write_png(
        sheet, media.contact_sheet(video, columns=8, picture=still.picture, caption=caption)
    )
    t, h, w, _ = video.shape
    enlarged = "" if scale == 1 else f", enlarged {scale} times"
    print(
        f"{caption}\n"
        f"  {file}: the video, {t} frames of {w}x{h}{enlarged}\n"
        f"  {sheet}: the picture and all frames on one sheet"
    )


def define_flags() -> DemoFlags:
    """Defines the command's flags, in a function so that other entry points don't inherit them."""
    return DemoFlags(
        flags.DEFINE_string("output_dir", "demo", "Folder for the videos and the sheets."),
        flags.DEFINE_integer(
            "scale", 4, "How many times as large the videos are; 1 for the model's pixels.", 1, 16
        ),
    )


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
