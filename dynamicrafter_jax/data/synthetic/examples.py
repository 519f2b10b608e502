"""Training samples of drawn clips."""

import hashlib
from typing import cast

import numpy as np

from dynamicrafter_jax.data.clips import PROBLEM_BYTES, Example, drawn_arrays, prompt_ids
from dynamicrafter_jax.data.draws import ClipSettings, draw_clip
from dynamicrafter_jax.data.synthetic.photographs import SPLITS, Split
from dynamicrafter_jax.data.synthetic.rendering import Renderer
from dynamicrafter_jax.data.synthetic.scenes import draw_scene, trajectory
from dynamicrafter_jax.errors import UserError

_EPOCH = 2**20


class SyntheticExamples:
    """The samples of a split, by number, without end: with the arrays of `clips.VideoExamples`.

    Sample i of a split is clip i; but of the train split, each seed has clips of its own.
    `item` is the clip's number. Prompts and images are dropped as those of videos are.
    """

    def __init__(self, settings: ClipSettings, seed: int, split: str = "train") -> None:
        """Makes samples of a split; all of them follow from the three arguments.

        A clip of stride n is every n-th frame of one that is longer, and there is no end to those.

        Raises:
            UserError: The seed is negative, there is no such split, or `fs` is the stride.
        """
        if seed < 0:
            raise UserError(f"train.seed is {seed}: give 0 or more")
        if split not in SPLITS:
            known = ", ".join(f"synthetic:{name}" for name in SPLITS)
            raise UserError(f"synthetic:{split} is unknown: choose from {known}")
        if settings.fs == "stride":
            raise UserError(
                "data.fs is 'stride': drawn clips need frames a second, which set speeds"
            )
        self._settings, self._seed = settings, seed
        self._split: Split = cast(Split, split)

    def __len__(self) -> int:
        """Returns how many samples an epoch has, for those who count them: there is no end."""
        return _EPOCH

    def __call__(self, index: int) -> Example:
        """Makes a sample."""
        settings = self._settings
        number = _mix(self._seed, index) if self._split == "train" else index
        scene = draw_scene(number, self._split)
        renderer = Renderer(scene, settings.height, settings.width)
        longest = settings.num_frames * settings.max_stride
        draw = draw_clip(self._seed, index, longest, settings)
        poses = trajectory(scene, longest)
        caption = scene.caption if draw.keep_text else ""
        return {
            "index": np.asarray(index, np.int64),
            "item": np.asarray(number, np.int64),
            "weight": np.asarray(1, np.float32),
            "video": np.stack(
                [renderer.frame(poses.pose(draw.stride * place)) for place in draw.places]
            ),
            **drawn_arrays(draw, settings),
            "ids": prompt_ids(caption, settings.context_length),
            "fs": np.asarray(settings.fs_condition(scene.fps, draw.stride), np.float32),
            "problem": np.asarray(b"", f"S{PROBLEM_BYTES}"),
        }


def _mix(seed: int, index: int) -> int:
    """Returns a number of 63 bits, which int64 holds; other arguments make an unrelated one."""
    words = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(words, "little") >> 1
