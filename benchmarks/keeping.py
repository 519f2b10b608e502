"""Keeps what takes long to make in a folder, so that the same command resumes.

All is found by a digest of what it is made of, but not of the code: empty the folder when that
changes.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from drawn_clips import Ablation, Drawn, Generator, Videos, find_changes
from tracking import Change

from dynamicrafter_jax.models import Models
from dynamicrafter_jax.pipeline import ImageToVideo

_AT_ONCE = 128  # clips whose changes are kept together
_SECTIONS = (*Models._fields, "diffusion", "precision")
"""What of a config decides on samples, besides their settings."""


class KeepingGenerator(Generator):
    """Keeps each batch of videos, by model, settings and clips, and does not sample it again."""

    def __init__(
        self, animate: ImageToVideo, batch_size: int, folder: Path, **settings: Any
    ) -> None:
        """Binds a model and makes the folder; the rest is as without it."""
        super().__init__(animate, batch_size, **settings)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        sections = [animate.config[name].to_json(sort_keys=True) for name in _SECTIONS]
        self._digest = hashlib.sha256(f"{sections} {self._settings} {batch_size}".encode())
        for leaf in jax.tree.leaves(animate.params):
            self._digest.update(np.asarray(leaf).tobytes())

    def seconds_per_clip(self, clips: Sequence[Drawn]) -> float:
        """Returns the time to sample a clip, as it was when first asked for."""
        measure = functools.partial(super().seconds_per_clip, clips)
        file = self._folder / f"{self._digest.hexdigest()}.npy"
        return float(kept(file, lambda: np.asarray(measure())))

    def _sample(
        self, clips: Sequence[Drawn], first: int, without: Ablation, interpolate: bool
    ) -> Videos:
        digest = self._digest.copy()
        digest.update(f"{first} {without} {interpolate}".encode())
        for clip in clips:
            digest.update(f"{clip.scene.caption} {clip.scene.fps}".encode())
            digest.update(clip.video[[0, -1]].tobytes())
        sample = functools.partial(super()._sample, clips, first, without, interpolate)
        return kept(self._folder / f"{digest.hexdigest()}.npy", sample)


def find_kept_changes(
    clips: Sequence[Drawn], videos: Videos, processes: int, folder: Path
) -> list[Change]:
    """Returns what `drawn_clips.find_changes` finds, and keeps it by scenes and videos.

    Args:
        clips: The clips whose scenes the videos should show.
        videos: A video for each.
        processes: How many search at once.
        folder: Where results are kept; it must exist.
    """
    found = [
        kept(
            folder / f"{_digest_of(clips[part], videos[part])}.npy",
            lambda part=part: np.asarray(find_changes(clips[part], videos[part], processes)),
        )
        for part in (slice(i, i + _AT_ONCE) for i in range(0, len(clips), _AT_ONCE))
    ]
    return [Change(*row) for row in np.concatenate(found).tolist()]


def _digest_of(clips: Sequence[Drawn], videos: Videos) -> str:
    digest = hashlib.sha256()
    for clip, video in zip(clips, videos, strict=True):
        digest.update(f"{clip.scene} {video.shape}".encode() + video.tobytes())
    return digest.hexdigest()


def kept(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns an array from its file; makes it and writes the file if there is none."""
    if file.exists():
        return np.load(file, allow_pickle=False)
    made = make()
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as output:
        np.save(output, made)
    part.replace(file)
    return made
