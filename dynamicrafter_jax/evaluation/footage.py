"""Reads frames of videos of any kind: files, animations, folders of pictures and arrays."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dynamicrafter_jax.data.folders import EXTENSIONS as DECODED
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import frames as frame_folders
from dynamicrafter_jax.media.cropping import cover
from dynamicrafter_jax.media.frames import list_frames
from dynamicrafter_jax.media.pillow import (
    MIN_SIDE,
    frames_of_animation,
    open_animation,
    read_picture,
    size_of_picture,
)
from dynamicrafter_jax.runtime import files

_ANIMATIONS = (".webp", ".apng")

EXTENSIONS = (*DECODED, *_ANIMATIONS, ".npy")
"""Extensions of the files that count as videos, as do folders of frames (`media.frames`)."""

PICTURES = tuple(kind for kind in frame_folders.EXTENSIONS if kind not in _ANIMATIONS)
"""Extensions of the files that hold a single frame."""


class Footage(NamedTuple):
    """What is known of a video before its frames are decoded.

    Attributes:
        frames: Number of frames.
        fps: Frames a second; None if the file does not say.
        sha256: SHA-256 of the file or, for a folder, of its pictures' names and hashes.
    """

    frames: int
    fps: float | None
    sha256: str


def inspect(file: str | bytes, name: str) -> Footage:
    """Returns the length, frame rate and hash of a video.

    Args:
        file: A path, or the bytes of a file that ffmpeg can read.
        name: What error messages call it.

    Raises:
        UserError: The video is missing or can't be read.
    """
    if _is_folder(file):
        return _inspect_folder(str(file), name)
    data = file if isinstance(file, bytes) else files.read_bytes(file)
    sha256 = hashlib.sha256(data).hexdigest()
    kind = _kind(file)
    if kind in PICTURES:
        return Footage(1, None, sha256)
    if kind == ".npy":
        return Footage(len(_array(str(file))), None, sha256)
    if kind in _ANIMATIONS:
        with _animation(data, name) as (picture, count):
            rate = _rate(picture, count)
        return Footage(count, rate, sha256)
    with open_video(file, name) as reader:
        return Footage(reader.num_frames, reader.fps, sha256)


def read_frames(
    file: str | bytes, name: str, indices: Sequence[int], height: int, width: int
) -> UInt8[np.ndarray, "t height width 3"]:
    """Returns the frames with the given numbers.

    They are resized to cover height x width and center-cropped: by ffmpeg for files that it decodes
    (`VideoReader.frames`), otherwise by Pillow (`media.cropping.cover`). Frames that already have
    this size are the same either way.

    Args:
        file: As in `inspect`.
        name: What error messages call it.
        indices: Increasing numbers from 0.
        height: Height of the results, in pixels.
        width: Width of the results, in pixels.

    Raises:
        UserError: A frame is missing or damaged.
    """
    if _is_folder(file):
        pictures = list_frames(str(file))
        if missing := [i for i in indices if i >= len(pictures)]:
            raise UserError(f"{name} has {len(pictures)} frames, but no number {missing[0]}")
        found = {pictures[i].name: read_picture(pictures[i]) for i in indices}
        _check_sizes(name, {file: frame.shape[:2] for file, frame in found.items()})
        found = list(found.values())
    elif _kind(file) in PICTURES:
        found = [read_picture(str(file))]
    elif _kind(file) == ".npy":
        found = list(_array(str(file))[list(indices)])
    elif _kind(file) in _ANIMATIONS:
        data = file if isinstance(file, bytes) else files.read_bytes(file)
        found = frames_of_animation(data, name, indices)
    else:
        with open_video(file, name) as reader:
            return reader.read(indices, height, width)
    return np.stack([cover(np.ascontiguousarray(frame), height, width) for frame in found])


def _is_folder(file: str | bytes) -> bool:
    return isinstance(file, str) and files.as_path(file).is_dir()


def _kind(file: str | bytes) -> str:
    return "" if isinstance(file, bytes) else os.path.splitext(file)[1].lower()


def _inspect_folder(folder: str, name: str) -> Footage:
    digest = hashlib.sha256()
    pictures = list_frames(folder)
    sizes = {}
    for picture in pictures:
        data = files.read_bytes(picture)
        sizes[picture.name] = size_of_picture(data, os.fspath(picture))
        # A name that is not UTF-8 has lone surrogates.
        digest.update(f"{picture.name} ".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(data).digest())
    _check_sizes(name, sizes)
    return Footage(len(pictures), None, digest.hexdigest())


def _check_sizes(name: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that frames, given as sizes by name, all have the same height and width."""
    for (first, size), (other, other_size) in pairwise(sizes.items()):
        if size != other_size:
            (h, w), (other_h, other_w) = size, other_size
            raise UserError(
                f"{name} has frames of {w} x {h} and {other_w} x {other_h} pixels, {first} and "
                f"{other}: make them the same size"
            )


def _array(path: str) -> UInt8[np.ndarray, "t h w 3"]:
    array = files.read_array(path)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise UserError(
            f"{path} is {array.dtype} {array.shape}: videos are uint8 (frames, height, width, 3)"
        )
    if min(array.shape[1:3]) < MIN_SIDE:
        raise UserError(f"{path} has frames of under {MIN_SIDE} pixels a side: give larger ones")
    return array


@contextlib.contextmanager
def _animation(data: bytes, name: str) -> Iterator[tuple[Image.Image, int]]:
    """Opens an animation; gives its picture and its number of frames."""
    with open_animation(data, name) as picture:
        yield picture, getattr(picture, "n_frames", 1)


def _rate(picture: Image.Image, count: int) -> float | None:
    """Returns the average frame rate of an animation; None if it has no durations."""
    milliseconds = 0.0
    for number in range(count - 1):
        picture.seek(number)
        picture.load()  # which reads the frame's duration
        milliseconds += picture.info.get("duration") or 0
    return 1000 * (count - 1) / milliseconds if milliseconds else None
