"""Videos of any kind, by frames: files, animations, folders of pictures and arrays."""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from dynamicrafter_jax import files
from dynamicrafter_jax.data.decoding import open_video
from dynamicrafter_jax.data.folders import EXTENSIONS as DECODED
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.cropping import cover
from dynamicrafter_jax.media.pictures import MIN_SIDE, read_picture

EXTENSIONS = (*DECODED, ".webp", ".npy")
"""Of the files that count as videos. So does a folder of PNGs."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
"""Of the files that are a single frame."""


class Footage(NamedTuple):
    """What is known of a video before its frames are decoded.

    Attributes:
        frames: How many it has.
        fps: Frames a second; None where it does not say.
        sha256: Of the file; of a folder, of its pictures' names and hashes.
    """

    frames: int
    fps: float | None
    sha256: str


def inspect(file: str | bytes, name: str) -> Footage:
    """Finds out how long a video is, and its hash.

    Args:
        file: A path, or the bytes of a file that ffmpeg knows.
        name: What error messages call it.

    Raises:
        UserError: It is missing or can't be read.
    """
    if _is_folder(file):
        return _inspect_folder(str(file))
    data = file if isinstance(file, bytes) else files.read_bytes(file)
    sha256 = hashlib.sha256(data).hexdigest()
    kind = _kind(file)
    if kind in PICTURES:
        return Footage(1, None, sha256)
    if kind == ".npy":
        return Footage(len(_array(str(file))), None, sha256)
    if kind == ".webp":
        with _animation(data, name) as (picture, count):
            picture.load()  # which tells how long a frame lasts
            duration = picture.info.get("duration") or 0
        return Footage(count, 1000 / duration if duration else None, sha256)
    with open_video(file, name) as reader:
        return Footage(reader.num_frames, reader.fps, sha256)


def read_frames(
    file: str | bytes, name: str, indices: Sequence[int], height: int, width: int
) -> UInt8[np.ndarray, "t height width 3"]:
    """Returns the frames of these numbers.

    They are resized until they cover height x width, and cut in the middle. Both is done by
    ffmpeg for files that it decodes (`VideoReader.frames`), and else by Pillow
    (`media.cropping.cover`); frames of that size already are the same by either.

    Args:
        file: As in `inspect`.
        name: What error messages call it.
        indices: Growing numbers from 0.
        height: In pixels.
        width: In pixels.

    Raises:
        UserError: A frame is missing or damaged.
    """
    if _is_folder(file):
        pictures = _pictures(str(file))
        found = _all_of_one_size(name, [read_picture(pictures[i]) for i in indices])
    elif _kind(file) in PICTURES:
        found = [read_picture(str(file))]
    elif _kind(file) == ".npy":
        found = list(_array(str(file))[list(indices)])
    elif _kind(file) == ".webp":
        data = file if isinstance(file, bytes) else files.read_bytes(file)
        found = _frames_of_animation(data, name, indices)
    else:
        with open_video(file, name) as reader:
            return reader.read(indices, height, width)
    return np.stack([cover(np.ascontiguousarray(frame), height, width) for frame in found])


def _is_folder(file: str | bytes) -> bool:
    return isinstance(file, str) and files.as_path(file).is_dir()


def _kind(file: str | bytes) -> str:
    return "" if isinstance(file, bytes) else os.path.splitext(file)[1].lower()


def _pictures(folder: str) -> list[epath.Path]:
    """The pictures of a folder in the order of their names."""
    return sorted(
        file
        for file in files.as_path(folder).iterdir()
        if file.suffix.lower() == ".png" and not file.name.startswith(".")
    )


def _inspect_folder(folder: str) -> Footage:
    digest = hashlib.sha256()
    pictures = _pictures(folder)
    for picture in pictures:
        digest.update(f"{picture.name} ".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(files.read_bytes(picture)).digest())
    return Footage(len(pictures), None, digest.hexdigest())


def _all_of_one_size(name: str, frames: list[np.ndarray]) -> list[np.ndarray]:
    sizes = dict.fromkeys(f"{w} x {h}" for h, w, _ in (frame.shape for frame in frames))
    if len(sizes) > 1:
        raise UserError(f"{name} has frames of {' and '.join(sizes)} pixels: make them alike")
    return frames


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
    """Opens an animation, which Pillow decodes; ffmpeg shows but the first frame of a `.webp`."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            yield picture, getattr(picture, "n_frames", 1)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is truncated or no animation: make or copy it again") from error


def _frames_of_animation(data: bytes, name: str, indices: Sequence[int]) -> list[np.ndarray]:
    wanted = set(indices)
    with _animation(data, name) as (picture, _):
        found = {
            i: np.asarray(frame.convert("RGB"))
            for i, frame in enumerate(ImageSequence.Iterator(picture))
            if i in wanted
        }
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{name} is damaged: frame {missing[0]} can't be decoded")
    return [found[i] for i in indices]
