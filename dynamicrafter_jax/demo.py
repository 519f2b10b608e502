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

_PHOTOGRAPH, _PROMPT = "coffee.jpg", "the camera zooms in"
_CLIP = 4  # of the test split, which no training sees


class Still(NamedTuple):
    """What is animated.

    Attributes:
        name: Of the files.
        picture: The first frame.
        prompt: What happens.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    prompt: str


def photograph() -> Still:
    """A photograph that ships with the package, and that no training saw."""
    with resources.as_file(resources.files("dynamicrafter_jax") / "assets" / _PHOTOGRAPH) as path:
        return Still(path.stem, media.read_picture(path), _PROMPT)


def drawn(clip: int, side: int) -> Still:
    """The start of a clip of the test split, `side` pixels high and wide."""
    scene = draw_scene(clip, "test")
    picture = Renderer(scene, side, side).frame(trajectory(scene, 1).pose(0))
    return Still("drawn", picture, scene.caption)


def main(output_dir: flags.FlagHolder[str], _: Sequence[str]) -> None:
    """Animates both at once, and says where to look."""
    started = time.perf_counter()
    folder = epath.Path(output_dir.value)
    media.check_output(folder / f"{photograph().name}.mp4")

    animate = ImageToVideo.from_pretrained(DEMO)
    stills = [photograph(), drawn(_CLIP, animate.config.sampling.height)]
    pictures, prompts = [still.picture for still in stills], [still.prompt for still in stills]
    with ProgressBar() as progress:
        videos = animate(pictures, prompts, progress=progress)

    for still, frames in zip(stills, videos, strict=True):
        video, sheet = (folder / f"{still.name}{suffix}" for suffix in (".mp4", ".png"))
        media.write_video(video, frames, animate.config.sampling.video_fps)
        caption = f'"{still.prompt}"'
        media.write_png(
            sheet, media.contact_sheet(frames, columns=8, picture=still.picture, caption=caption)
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
