"""Makes the moving picture of README.md and the contact sheets of docs/results.md.

    python docs/images/make_demo_pictures.py

All are of the demo model, from pictures that it has not seen in training.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dynamicrafter_jax import media
from dynamicrafter_jax.data.synthetic.photographs import photograph
from dynamicrafter_jax.demo import Still, drawn, two_crops
from dynamicrafter_jax.pipeline import ImageToVideo

FOLDER = Path(__file__).parent
SCALE = 2  # of the moving picture
MILLISECONDS = 110  # that a frame of it is shown
COLUMNS = 4

PHOTOGRAPHS = (
    ("coffee", "the camera zooms in"),
    ("rocket", "the camera pans left"),
    ("flower", "the camera zooms out"),
)
CLIPS = (4, 10, 17, 18, 22)  # of the test split: short captions of various motions


class Shown(NamedTuple):
    """A video, and what it was made of."""

    still: Still
    video: UInt8[np.ndarray, "t h w 3"]


def make_videos() -> list[Shown]:
    """Animates all photographs and drawn scenes, and last goes from one picture to another."""
    animate = ImageToVideo.from_pretrained("demo")
    side = animate.config.sampling.height
    stills = [Still(name, photograph(name), prompt) for name, prompt in PHOTOGRAPHS]
    stills += [drawn(clip, side) for clip in CLIPS]
    videos = animate([still.picture for still in stills], [still.prompt for still in stills])
    shown = [Shown(still, video) for still, video in zip(stills, videos, strict=True)]
    between = two_crops()
    video = animate(between.picture, between.prompt, end_image=between.end)
    return [*shown, Shown(between, video)]


def moving_picture(shown: list[Shown]) -> list[Image.Image]:
    """Returns the frames: all videos side by side, each with its prompt below."""
    sheets = []
    for still, video in shown:
        enlarged = video.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        sheets.append(
            [
                media.contact_sheet(frame[None], columns=1, caption=f'"{still.prompt}"')
                for frame in enlarged
            ]
        )
    height = max(sheet[0].shape[0] for sheet in sheets)
    frames = []
    for moment in zip(*sheets, strict=True):
        tiles = [
            np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=255)
            for tile in moment
        ]
        rows = [
            np.concatenate(tiles[start : start + COLUMNS], axis=1)
            for start in range(0, len(tiles), COLUMNS)
        ]
        frames.append(Image.fromarray(np.concatenate(rows)))
    return frames


def main() -> None:
    """Makes and writes everything."""
    *shown, between = make_videos()
    frames = moving_picture(shown)
    frames[0].save(
        FOLDER / "demo.webp",
        save_all=True,
        append_images=frames[1:],
        duration=MILLISECONDS,
        loop=0,
        quality=70,
        method=6,
    )
    for still, video in (*shown[: len(PHOTOGRAPHS)], between):
        sheet = media.contact_sheet(
            video, columns=8, picture=still.picture, caption=f'"{still.prompt}"'
        )
        media.write_png(FOLDER / f"results_{still.name}.png", sheet)


if __name__ == "__main__":
    main()
