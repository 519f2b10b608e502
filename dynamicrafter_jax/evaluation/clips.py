"""The clips to compare: chosen by a rule or from a list, and the same on every machine."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.datasets import DataSet
from dynamicrafter_jax.evaluation.footage import inspect, read_frames
from dynamicrafter_jax.evaluation.protocol import Frames, Picture, Protocol
from dynamicrafter_jax.runtime import files, tables
from dynamicrafter_jax.runtime.map_ahead import map_ahead

READERS = 4
"""Threads that read videos."""

_AHEAD = 8


@dataclasses.dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Attributes:
        name: Name of the video.
        sha256: SHA-256 of its file.
        start: Number of the first frame.
        fps: Frames a second of the file; None if it does not say.
        prompt: What happens; may be empty.
        group: What the video belongs to, such as its class; may be empty.
    """

    name: str
    sha256: str
    start: int
    fps: float | None
    prompt: str
    group: str

    @property
    def sample_index(self) -> int:
        """Sample number for generating a clip from this one; it depends on the name alone."""
        return zlib.crc32(self.name.encode(errors="surrogateescape"))


class Problem(NamedTuple):
    """A video that can't be used.

    Attributes:
        name: Name of the video.
        reason: Why it can't be used, in one line.
    """

    name: str
    reason: str


def choose(
    protocol: Protocol, data: DataSet, *, skip: bool = False
) -> tuple[list[Clip], list[Problem]]:
    """Returns the clips of a protocol, in its order, and the videos that were skipped.

    Args:
        protocol: The protocol.
        data: The videos.
        skip: Whether to skip videos that can't be read.

    Raises:
        UserError: Videos can't be read or, if all are wanted, are too short; the message names all
            of them. Or there are too few, or they are not those that the protocol pins down.
    """
    if protocol.clips.list is not None:
        clips, problems = _pinned(protocol, data)
    else:
        clips, problems = _ruled(protocol, data)
    stop_for(problems, skip)
    wanted = protocol.clips.videos
    if wanted is not None and len(clips) < wanted and not (skip and problems):
        raise UserError(
            f"{data.place} has {len(clips)} videos of {protocol.frames.span} frames or more, but "
            f"{protocol.name} compares {wanted}: give the whole data set, or a lower --num_videos"
        )
    if len(clips) < 2:
        raise UserError(f"{data.place} has too few videos to compare: {len(clips)}")
    found, pinned = list_sha256(clips), protocol.clips.sha256
    if pinned is not None and found != pinned and not problems:
        raise UserError(
            f"the clips of {data.place} are not those of {protocol.name}: their list hashes to "
            f"{found} instead of {pinned}"
        )
    return clips, problems


def read_clip(
    data: DataSet, numbers: dict[str, int], clip: Clip, frames: Frames, picture: Picture
) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns the frames of a clip.

    Args:
        data: The videos.
        numbers: Numbers of the videos in `data`, by name.
        clip: Which clip.
        frames: How many frames, and how far apart.
        picture: Size of the frames.

    Raises:
        UserError: The frames can't be read.
    """
    video = data.read(numbers[clip.name])
    indices = range(clip.start, clip.start + frames.span, frames.stride)
    return read_frames(video.file, clip.name, indices, picture.height, picture.width)


def numbers_of(data: DataSet) -> dict[str, int]:
    """Returns the number of each video by its name."""
    return {name: i for i, name in enumerate(data.names)}


def inspect_clips(
    data: DataSet, names: Sequence[str], frames: Frames, seed: int
) -> Iterator[Clip | Problem]:
    """Yields the clip of each video in turn, or why the video can't be used."""
    numbers = numbers_of(data)

    def look(name: str) -> Clip | Problem:
        try:
            video = data.read(numbers[name])
            footage = inspect(video.file, name)
        except UserError as error:
            return Problem(name, str(error))
        if footage.frames < frames.span:
            return TooShort(name, too_short(name, footage.frames, frames))
        room = footage.frames - frames.span + 1
        start = _drawn(seed, "start", name) % room if frames.start == "random" else 0
        group = video.caption if data.groups is None else data.groups[numbers[name]]
        return Clip(name, footage.sha256, start, footage.fps, video.caption, group)

    with ThreadPoolExecutor(READERS) as pool:
        yield from map_ahead(pool, look, names, _AHEAD)


class TooShort(Problem):
    """A video with fewer frames than a clip needs."""


def too_short(name: str, found: int, frames: Frames) -> str:
    """Returns a message that says that a video has too few frames."""
    needed = f"{frames.count} frames"
    if frames.stride > 1:
        needed = f"{frames.span} frames, for {frames.count} at stride {frames.stride}"
    return f"{name} has {found} frames, but {needed} are needed"


def stop_for(problems: Sequence[Problem], skip: bool, finished: str = "") -> None:
    """Raises one error about all videos that can't be used, unless they are to be skipped."""
    if problems and not skip:
        reasons = "; ".join(problem.reason for problem in problems)
        raise UserError(
            f"{len(problems)} videos can't be used{finished}: {reasons}. Repair them, or skip "
            "them with --skip_unreadable"
        )


def ranked(names: Sequence[str], seed: int) -> list[str]:
    """Returns names in the order of the rule "hash"."""
    return sorted(names, key=lambda name: (_drawn(seed, "clip", name), name))


def list_sha256(clips: Sequence[Clip]) -> str:
    """Returns the hash of a list of clips: names, files, starts and prompts, in order."""
    digest = hashlib.sha256()
    for clip in clips:
        said = [clip.name, clip.sha256, clip.start, clip.prompt]
        digest.update(json.dumps(said).encode() + b"\n")
    return digest.hexdigest()


def write_list(path: epath.PathLike, clips: Sequence[Clip]) -> None:
    """Writes a list of clips, one line of JSON each, to which a protocol may refer."""
    lines = (json.dumps(dataclasses.asdict(clip)) + "\n" for clip in clips)
    files.write_bytes(path, "".join(lines).encode())


def read_list(path: epath.PathLike) -> list[Clip]:
    """Reads what `write_list` wrote.

    Raises:
        UserError: The file is missing, or a line is not a clip.
    """
    clips = []
    for number, row in tables.json_rows(path, tables.read_lines(path)):
        with tables.naming(path, number):
            try:
                clips.append(settings_of(Clip, "clip", ConfigDict(row)))
            except UserError as error:
                raise UserError(f"is not a clip: {error}") from None
    return clips


def _ruled(protocol: Protocol, data: DataSet) -> tuple[list[Clip], list[Problem]]:
    wanted, seed = protocol.clips.videos, protocol.clips.seed
    clips: list[Clip] = []
    problems: list[Problem] = []
    names = ranked(data.names, seed)
    for found in inspect_clips(data, names, protocol.frames, seed):
        if isinstance(found, Clip):
            clips.append(found)
        elif wanted is None or not isinstance(found, TooShort):
            problems.append(found)
        if len(clips) == wanted:
            break
    return clips, problems


def _pinned(protocol: Protocol, data: DataSet) -> tuple[list[Clip], list[Problem]]:
    assert protocol.clips.list is not None
    listed = read_list(protocol.clips.list)
    if protocol.clips.sha256 not in (None, list_sha256(listed)):
        raise UserError(
            f"{protocol.clips.list} hashes to {list_sha256(listed)} instead of "
            f"{protocol.clips.sha256}: it is not the list of {protocol.name}"
        )
    known = set(data.names)
    clips: list[Clip] = []
    problems = [
        Problem(clip.name, f"{clip.name} is not in {data.place}")
        for clip in listed
        if clip.name not in known
    ]
    there = [clip for clip in listed if clip.name in known]
    names = [clip.name for clip in there]
    looked = inspect_clips(data, names, protocol.frames, protocol.clips.seed)
    for clip, found in zip(there, looked, strict=True):
        if not isinstance(found, Clip):
            problems.append(found)
        elif found.sha256 != clip.sha256:
            reason = f"{clip.name} hashes to {found.sha256} instead of {clip.sha256}"
            problems.append(Problem(clip.name, reason))
        else:
            clips.append(clip)
    return clips, problems


def _drawn(seed: int, purpose: str, name: str) -> int:
    """Returns a number that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed} {purpose} {name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
