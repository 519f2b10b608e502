"""Animates a photograph and a drawn scene, with the small model that ships with the package.

    python -m dynamicrafter_jax.demo

writes two videos and, for a look without a player, a sheet of each one's picture and frames. The
model was trained on drawn clips alone: it moves what is in a picture as the words say.
"""

import functools
import time
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8

from dynamicrafter_jax import cli, media, provenance
from dynamicrafter_jax.data.synthetic import Renderer, draw_scene, trajectory
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.pretrained import DEMO
from dynamicrafter_jax.progress import ProgressBar

_PHOTOGRAPH, _PROMPT = "coffee.jpg", "the camera zooms in"
_CLIP = 4  # of the test split, which no training sees


class Scene(NamedTuple):
    """What is animated.

    Attributes:
        name: Of the files.
        picture: The first frame.
        prompt: What happens.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    prompt: str


def photograph() -> Scene:
    """A photograph that ships with the package, and that no training saw."""
    with resources.as_file(resources.files("dynamicrafter_jax") / "assets" / _PHOTOGRAPH) as path:
        return Scene(path.stem, media.read_picture(path), _PROMPT)


def drawn(side: int) -> Scene:
    """A scene such as the model was trained on, `side` pixels high and wide."""
    scene = draw_scene(_CLIP, "test")
    picture = Renderer(scene, side, side).frame(trajectory(scene, 1).pose(0))
    return Scene("drawn", picture, scene.caption)


def main(output_dir: flags.FlagHolder[str], _: Sequence[str]) -> None:
    """Animates both at once, and says where to look."""
    started = time.perf_counter()
    folder = epath.Path(output_dir.value)
    media.check_output(folder / f"{photograph().name}.mp4")

    animate = ImageToVideo.from_pretrained(DEMO)
    scenes = [photograph(), drawn(animate.config.sampling.height)]
    pictures, prompts = [scene.picture for scene in scenes], [scene.prompt for scene in scenes]
    with ProgressBar() as progress:
        videos = animate(pictures, prompts, progress=progress)

    for scene, frames in zip(scenes, videos, strict=True):
        video, sheet = (folder / f"{scene.name}{suffix}" for suffix in (".mp4", ".png"))
        media.write_video(video, frames, animate.config.sampling.video_fps)
        caption = f'"{scene.prompt}"'
        media.write_png(
            sheet, media.contact_sheet(frames, columns=8, picture=scene.picture, caption=caption)
        )
        t, h, w, _ = frames.shape
        print(
            f"{caption}\n"
            f"  {video}: the video, {t} frames of {w}x{h}\n"
            f"  {sheet}: the picture and all frames on one sheet"
        )
    print(
        f"{time.perf_counter() - started:.1f} s, {progress.seconds_per_step:.3f} s a step, "
        f"peak memory {provenance.peak_memory() / 2**30:.2f} GiB"
    )


def define_flags() -> flags.FlagHolder[str]:
    """Defines the flag of the command line, which other entry points must not inherit."""
    return flags.DEFINE_string("output_dir", "demo", "Folder of the videos and the sheets.")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
