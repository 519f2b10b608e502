"""The chosen clips of a data set, and their pairing with given videos."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.clips import (
    Clip,
    Problem,
    inspect_clips,
    numbers_of,
    ranked,
    read_clip,
    stop_for,
)
from dynamicrafter_jax.evaluation.datasets import DataSet
from dynamicrafter_jax.evaluation.footage import inspect, read_frames
from dynamicrafter_jax.evaluation.measures import Seen
from dynamicrafter_jax.evaluation.measuring import Item
from dynamicrafter_jax.evaluation.protocol import Frames, Protocol
from dynamicrafter_jax.sampling.bulk.manifest import fingerprint
from dynamicrafter_jax.weights.tensors import list_names

Picture = UInt8[np.ndarray, "h w 3"]


class Reference:
    """The clips that others are compared with.

    Attributes:
        clips: The clips, in the order of the list.
        data: The videos that they are cut from.
    """

    def __init__(self, protocol: Protocol, data: DataSet, clips: Sequence[Clip]) -> None:
        """Takes clips, as `clips.choose` returns them."""
        self.clips = list(clips)
        self.data = data
        self._frames, self._picture = protocol.frames, protocol.picture
        self._numbers = numbers_of(data)
        self._clip = {clip.name: clip for clip in self.clips}

    def items(self) -> list[Item]:
        """Returns the clips as items to measure."""
        return [self.item(clip.name) for clip in self.clips]

    def item(self, name: str) -> Item:
        """Returns one clip as an item to measure."""
        clip = self._clip[name]
        return Item(name, _digest(clip, self._frames, self._picture), clip.prompt)

    def read(self, item: Item) -> Seen:
        """Returns the frames of a clip, preceded by the first one as its image."""
        frames = self._read(item.name, self._frames)
        return np.concatenate([frames[:1], frames])

    def image(self, name: str) -> Picture:
        """Returns the first frame of a clip."""
        return self._read(name, Frames(1, 1, self._frames.start))[0]

    def _read(self, name: str, frames: Frames) -> UInt8[np.ndarray, "t h w 3"]:
        return read_clip(self.data, self._numbers, self._clip[name], frames, self._picture)


class Given:
    """Videos that were generated elsewhere, each with the image it was made from, if known."""

    def __init__(
        self,
        protocol: Protocol,
        data: DataSet,
        clips: Sequence[Clip],
        image: Callable[[str], Picture] | None,
        image_digest: Callable[[str], str],
    ) -> None:
        """Takes the videos and their images.

        Args:
            protocol: How videos are read.
            data: The videos.
            clips: Which of them.
            image: Returns the image of a video by its name; None if images are not known.
            image_digest: Returns a hash of the image of a video, by its name.
        """
        self.clips = list(clips)
        self._data, self._picture = data, protocol.picture
        self._frames = protocol.frames.generated()
        self._numbers = numbers_of(data)
        self._clip = {clip.name: clip for clip in self.clips}
        self._image, self._image_digest = image, image_digest

    def items(self) -> list[Item]:
        """Returns the clips as items to measure."""
        return [
            Item(
                clip.name,
                fingerprint(
                    {
                        "clip": _digest(clip, self._frames, self._picture),
                        "image": self._image_digest(clip.name),
                    }
                ),
                clip.prompt,
            )
            for clip in self.clips
        ]

    def read(self, item: Item) -> Seen:
        """Returns the image of a clip (black if not known), followed by the clip's frames."""
        clip = self._clip[item.name]
        frames = read_clip(self._data, self._numbers, clip, self._frames, self._picture)
        image = np.zeros_like(frames[0]) if self._image is None else self._image(item.name)
        return np.concatenate([image[None], frames])


def pair(
    protocol: Protocol,
    videos: DataSet,
    reference: Reference,
    images: DataSet | None,
    *,
    skip: bool = False,
) -> tuple[Given, list[Problem]]:
    """Finds the videos that are compared with the reference clips.

    Args:
        protocol: How videos are paired with clips.
        videos: All given videos.
        reference: The reference clips.
        images: The images that videos were made from; None for the first frames of the
            reference clips with the same names.
        skip: Whether to skip videos that can't be read.

    Returns:
        The videos, and those that were skipped.

    Raises:
        UserError: Names or counts do not match, or a video can't be read or is too short.
    """
    wanted = [clip.name for clip in reference.clips]
    if protocol.pairing == "names":
        _check_names(videos, reference, wanted)
    elif len(videos.names) < len(wanted) or (
        protocol.clips.videos is None and len(videos.names) > len(wanted)
    ):
        raise UserError(
            f"{videos.place} has {len(videos.names)} videos, but {len(wanted)} are compared with "
            f"as many of {reference.data.place}: give that many, or --num_videos for fewer of both"
        )
    else:
        wanted = ranked(videos.names, protocol.clips.seed)[: len(wanted)]
    found = list(inspect_clips(videos, wanted, protocol.frames.generated(), protocol.clips.seed))
    problems = [one for one in found if isinstance(one, Problem)]
    stop_for(problems, skip)
    clips = [one for one in found if isinstance(one, Clip)]
    if protocol.pairing == "names":
        prompts = {clip.name: clip.prompt for clip in reference.clips}
        clips = [dataclasses.replace(clip, prompt=prompts[clip.name]) for clip in clips]
    if len(clips) < 2:
        raise UserError(f"{videos.place} has too few videos to compare: {len(clips)}")
    if images is not None:
        image, digest = _images(protocol, images, [clip.name for clip in clips])
    elif protocol.pairing == "names":
        image, digest = reference.image, lambda name: reference.item(name).digest
    else:
        image, digest = None, lambda name: ""
    return Given(protocol, videos, clips, image, digest), problems


def _check_names(videos: DataSet, reference: Reference, wanted: Sequence[str]) -> None:
    missing = sorted(set(wanted) - set(videos.names))
    unknown = sorted(set(videos.names) - set(reference.data.names))
    parts = []
    if missing:
        parts.append(f"{videos.place} lacks {len(missing)} videos, {list_names(missing)}")
    if unknown:
        parts.append(
            f"{reference.data.place} lacks {len(unknown)} of its videos, {list_names(unknown)}"
        )
    if parts:
        raise UserError(
            f"videos do not match by name: {'; '.join(parts)}. Name each after its reference, "
            'or give a protocol with "pairing": "none"'
        )


def _images(
    protocol: Protocol, images: DataSet, names: Sequence[str]
) -> tuple[Callable[[str], Picture], Callable[[str], str]]:
    numbers, size = numbers_of(images), protocol.picture
    if missing := [name for name in names if name not in numbers]:
        raise UserError(f"{images.place} lacks the images of {list_names(missing)}")

    def image(name: str) -> Picture:
        file = images.read(numbers[name]).file
        return read_frames(file, name, [0], size.height, size.width)[0]

    @functools.cache
    def digest(name: str) -> str:
        return inspect(images.read(numbers[name]).file, name).sha256

    return image, digest


def _digest(clip: Clip, frames: Frames, size: object) -> str:
    """Returns a hash of everything that determines the frames of a clip."""
    return fingerprint(
        {
            "file": clip.sha256,
            "start": clip.start,
            "count": frames.count,
            "stride": frames.stride,
            "size": str(size),
        }
    )
