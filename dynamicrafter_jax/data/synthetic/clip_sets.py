"""Writes the first clips of a split as files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from dynamicrafter_jax.data.synthetic.motion import Trajectory
from dynamicrafter_jax.data.synthetic.photographs import Split
from dynamicrafter_jax.data.synthetic.rendering import Renderer
from dynamicrafter_jax.data.synthetic.scenes import Scene, draw_scene, trajectory
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.video import write_video
from dynamicrafter_jax.runtime import files


class Clip(NamedTuple):
    """A clip with its ground truth."""

    name: str
    scene: Scene
    trajectory: Trajectory
    frames: UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class ClipSet:
    """The first clips of a split.

    Attributes:
        split: The split.
        clips: Number of clips.
        height: Height of frames, in pixels.
        width: Width of frames, in pixels.
        num_frames: Number of frames in a clip.

    Raises:
        UserError: A number is under 1.
    """

    split: Split = "train"
    clips: int = 1000
    height: int = 64
    width: int = 64
    num_frames: int = 16

    def __post_init__(self) -> None:
        for name in ("clips", "height", "width", "num_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 or more")

    def __iter__(self) -> Iterator[Clip]:
        """Draws the clips, in order."""
        for number in range(self.clips):
            scene = draw_scene(number, self.split)
            poses = trajectory(scene, self.num_frames)
            frames = Renderer(scene, self.height, self.width).frames(poses)
            yield Clip(f"{self.split}_{number:06d}", scene, poses, frames)


def write_folder(path: epath.PathLike, clip_set: ClipSet) -> None:
    """Writes a folder of `.mp4` files with captions in `.txt` files next to them, atomically.

    It is a source of videos like any other (`folders.VideoFolder`).

    Raises:
        UserError: `path` exists, or writing fails.
    """
    files.check_writable(path, folder=True)
    with files.atomic(path) as folder:
        folder.mkdir()
        for clip in clip_set:
            write_video(folder / f"{clip.name}.mp4", clip.frames, clip.scene.fps)
            (folder / f"{clip.name}.txt").write_text(f"{clip.scene.caption}\n")
