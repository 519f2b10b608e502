"""Animates a photograph and a drawn scene, with the small model that ships with the package.

    python -m dynamicrafter_jax.demo

writes two videos and, to look at without a player, a sheet with the picture and frames of each. The
model was trained only on drawn clips: it moves what is in a picture as the prompt says.
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
_CLIP = 4  # in the test split, which is never trained on


class Still(NamedTuple):
    """A picture to animate.

    Attributes:
        name: Name of the files to write.
        picture: The first frame.
        prompt: What happens in the video.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    prompt: str


def photograph() -> Still:
    """Returns a photograph that ships with the package and was not trained on."""
    with resources.as_file(resources.files("dynamicrafter_jax") / "assets" / _PHOTOGRAPH) as path:
        return Still(path.stem, media.read_picture(path), _PROMPT)


def drawn(clip: int, side: int) -> Still:
    """Returns the start of a clip in the test split, `side` pixels high and wide."""
    scene = draw_scene(clip, "test")
    picture = Renderer(scene, side, side).frame(trajectory(scene, 1).pose(0))
    return Still("drawn", picture, scene.caption)


def main(output_dir: flags.FlagHolder[str], _: Sequence[str]) -> None:
    """Animates both pictures in one batch, and prints where the results are."""
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
    """Defines the command's flag, in a function so that other entry points don't inherit it."""
    return flags.DEFINE_string("output_dir", "demo", "Folder for the videos and the sheets.")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
