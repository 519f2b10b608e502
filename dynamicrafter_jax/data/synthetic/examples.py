"""Training samples from drawn clips."""

import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np

from dynamicrafter_jax.data.clips import PROBLEM_BYTES, Example, drawn_arrays, prompt_ids
from dynamicrafter_jax.data.draws import ClipSettings, draw_clip
from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.motion import MOTIONS, Motion
from dynamicrafter_jax.data.synthetic.photographs import SPLITS, Split
from dynamicrafter_jax.data.synthetic.rendering import Renderer
from dynamicrafter_jax.data.synthetic.scenes import draw_scene, trajectory
from dynamicrafter_jax.errors import UserError

_EPOCH = 2**20


class SyntheticExamples:
    """The endless samples of a split, by number, with the arrays of `clips.VideoExamples`.

    Sample i of a split is clip i, except that each seed has its own clips in the train split.
    `item` is the clip's number. Prompts and images are dropped as they are for videos.
    """

    def __init__(
        self,
        settings: ClipSettings,
        seed: int,
        split: str = "train",
        *,
        motions: Sequence[str] = (),
        motions_share: float = 0.0,
    ) -> None:
        """Prepares the samples of a split; they depend on nothing but the arguments.

        A clip of stride n is every n-th frame of a longer clip, which can have any length.

        Args:
            settings: How clips are cut.
            seed: Seed of the run.
            split: One of `SPLITS`.
            motions: Motions to show more often than the others, from `MOTIONS`.
            motions_share: Share of clips in which one of `motions` is all that happens. The others
                are what they are without.

        Raises:
            UserError: The seed is negative, there is no such split or motion, the share is out of
                range, there are motions without a share or a share without motions, or `fs` is
                the stride.
        """
        if seed < 0:
            raise UserError(f"train.seed is {seed}: give 0 or more")
        if split not in SPLITS:
            known = ", ".join(f"synthetic:{name}" for name in SPLITS)
            raise UserError(f"synthetic:{split} is unknown: choose from {known}")
        if settings.fs == "stride":
            raise UserError(
                "data.fs is 'stride': set it to 'fps' for drawn clips, whose speeds depend on it"
            )
        unknown = [motion for motion in motions if motion not in MOTIONS]
        if unknown:
            raise UserError(f"data.motions has {unknown[0]!r}: choose from {', '.join(MOTIONS)}")
        if not 0 <= motions_share <= 1 or bool(motions_share) != bool(motions):
            raise UserError(
                f"data.motions is {tuple(motions)} and data.motions_share {motions_share}: give "
                "motions and a share above 0, up to 1, or neither"
            )
        self._settings, self._seed = settings, seed
        self._motions, self._motions_share = cast(Sequence[Motion], motions), motions_share
        self._split: Split = cast(Split, split)

    def __len__(self) -> int:
        """Returns how many samples count as an epoch; in fact they never end."""
        return _EPOCH

    def __call__(self, index: int) -> Example:
        """Makes a sample."""
        settings = self._settings
        number = _mix(self._seed, index) if self._split == "train" else index
        scene = draw_scene(number, self._split, motions=self._chosen(number))
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

    def _chosen(self, number: int) -> tuple[Motion] | None:
        """Draws what replaces the motions of a clip, or None."""
        dice = Dice(number, f"{self._split} chosen motions")
        return (dice.choose(self._motions),) if dice.chance(self._motions_share) else None


def _mix(seed: int, index: int) -> int:
    """Hashes the arguments to a number of 63 bits, which fits in int64."""
    words = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(words, "little") >> 1
