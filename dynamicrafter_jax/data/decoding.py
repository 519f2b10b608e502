"""Chosen frames of a video file, by number: exact, resized, and nothing decoded in vain."""

import contextlib
import io
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from dynamicrafter_jax import files
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import MAX_PIXELS, MIN_SIDE
from dynamicrafter_jax.media.transparency import on_white
from dynamicrafter_jax.placeholders import refuse_placeholder

# Formats that hold their own data. The others of ffmpeg's include playlists, which would have
# files or addresses opened that whoever made the video has chosen.
_FORMATS = "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ogg"

# PyAV 18 fails on titles and the like in an old encoding unless told to go on; later ones do.
_ANY_TAGS: Any = {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}

FILTER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
"""How frames are resized and converted: bicubic, with colours rounded and computed a pixel each."""

# swscale is several times as fast at planes of green, blue and red as at RGB side by side.
_PLANES, _RED_GREEN_BLUE = "gbrp", (2, 0, 1)


class _Packet(NamedTuple):
    """One coded frame: when it is shown, or its number, and where to seek for it."""

    time: int
    seek_to: int


class _Run(NamedTuple):
    """Packets to decode in one go, as places in the file, and the frames wanted of them."""

    first: int
    last: int
    wanted: dict[int, int]  # time of a frame -> its place among those asked for


@contextlib.contextmanager
def open_video(file: str | bytes, name: str) -> Iterator["VideoReader"]:
    """Opens a video, and reads where its frames lie without decoding them.

    Args:
        file: A path, local or remote, or the bytes of a file.
        name: What error messages call it.

    Raises:
        UserError: It is missing, cut off, no video or without frames, or has sides under
            `MIN_SIDE` or more than `MAX_PIXELS` pixels.
    """
    with contextlib.ExitStack() as stack:
        with _readable(name, file):
            options = {"format_whitelist": _FORMATS}
            container = av.open(_input(file), "r", options=options, **_ANY_TAGS)
            reader = VideoReader(stack.enter_context(container), name)
        yield reader


class VideoReader:
    """Frames of an open video by number, in the order in which they are shown.

    It decodes in one thread: a worker process for each core gives more clips a second.

    Attributes:
        num_frames: Frames that can be shown: those that an edit list cuts out don't count, nor
            those before the first one that decoding can start at.
        fps: Frames a second, on average.
    """

    def __init__(self, container: InputContainer, name: str) -> None:
        """Reads the times of all frames; see `open_video`."""
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UserError(f"{name} holds no video: give a video file")
        if "mp4" in container.format.name and len(stream.index_entries):
            end, size = stream.index_entries[-1], container.size or 0
            if 0 < size < end.pos + end.size:
                raise UserError(f"{name} is cut off: copy it again")
        stream.codec_context.thread_count = 1
        packets = [
            (p.pts, p.dts, p.is_keyframe, p.is_discard)
            for p in container.demux(stream)
            if p.size and not p.is_corrupt
        ]
        # AVI says when frames are decoded, not when they are shown, and any format may not know.
        # Then frames are counted as they leave the decoder, from the start.
        times = {pts for pts, *_ in packets}
        self._counted = container.format.name == "avi" or None in times or len(times) < len(packets)
        self._packets = [
            _Packet(i if self._counted else pts or 0, (pts or 0) if dts is None else dts)
            for i, (pts, dts, _, _) in enumerate(packets)
        ]
        self._keys = [i for i, (_, _, is_key, _) in enumerate(packets) if is_key or self._counted]
        self._shown = sorted(
            (
                i
                for i, (*_, is_cut) in enumerate(packets)
                if not is_cut and self._key(i) is not None
            ),
            key=lambda i: self._packets[i].time,
        )
        self._name, self._container, self._stream = name, container, stream
        rate = stream.average_rate or stream.guessed_rate
        if not self._shown or not rate:
            raise UserError(f"{name} holds no frames or no frame rate: make or copy it again")
        if min(stream.height, stream.width) < MIN_SIDE or stream.height * stream.width > MAX_PIXELS:
            raise UserError(
                f"{name} has frames of {stream.width} x {stream.height} pixels: give a video with "
                f"sides of {MIN_SIDE} or more and up to {MAX_PIXELS // 1_000_000} million pixels"
            )
        self.num_frames = len(self._shown)
        self.fps = float(rate)
        self._reformatter = VideoReformatter()

    def read(
        self, indices: Sequence[int], height: int, width: int
    ) -> UInt8[np.ndarray, "t height width 3"]:
        """Returns the frames of these numbers; see `frames`."""
        video = np.empty((len(indices), height, width, 3), np.uint8)
        for place, frame in enumerate(self.frames(indices, height, width)):
            video[place] = frame
        return video

    def frames(
        self, indices: Sequence[int], height: int, width: int
    ) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
        """Yields frames one by one, so that a video of any length fits in memory.

        A frame is the same whichever others are asked for. It is turned upright, resized to cover
        height x width (bicubic, widened when shrinking) and cut in the middle; its pixels are
        made square, and its colours follow the file's tags.

        Args:
            indices: Numbers of frames from 0 to num_frames - 1, each larger than the one before.
            height: Of the results, in pixels.
            width: Of the results, in pixels.

        Raises:
            UserError: A frame is damaged or missing.
            ValueError: `indices` are not as described.
        """
        with _readable(self._name, None):
            yield from self._in_order(indices, height, width)

    def _in_order(
        self, indices: Sequence[int], height: int, width: int
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        waiting: dict[int, np.ndarray] = {}
        place = 0
        for run in self._runs(indices):
            missing = dict(run.wanted)
            # Where pictures are refreshed bit by bit, those right after a key are whole only if
            # decoding comes from further ahead.
            for first in dict.fromkeys((run.first, self._keys[0])):
                for time, frame in self._decode(first, run) if missing else ():
                    if time in missing:
                        waiting[missing.pop(time)] = self._picture(frame, height, width)
                    while place in waiting:
                        yield waiting.pop(place)
                        place += 1
                    if not missing:
                        break
            if missing:
                raise UserError(
                    f"{self._name} is damaged: of its {self.num_frames} frames, number "
                    f"{indices[min(missing.values())]} can't be decoded; make or copy it again"
                )

    def _runs(self, indices: Sequence[int]) -> list[_Run]:
        """Finds what must be decoded: for each frame, from the last key before it."""
        if any(b <= a for a, b in pairwise([-1, *indices, self.num_frames])):
            raise ValueError(f"{indices} are not growing numbers below {self.num_frames}")
        runs: list[_Run] = []
        for place, index in enumerate(indices):
            position = self._shown[index]
            key = self._key(position)
            assert key is not None
            last = len(self._packets) - 1 if self._counted else position
            if runs and key <= runs[-1].last:
                wanted = runs[-1].wanted
                runs[-1] = runs[-1]._replace(last=max(last, runs[-1].last))
            else:
                runs.append(_Run(key, last, wanted := {}))
            wanted[self._packets[position].time] = place
        return runs

    def _key(self, position: int) -> int | None:
        """The last key that is decoded and shown no later than a packet; None without one."""
        if self._counted:
            return 0
        time = self._packets[position].time
        before = bisect_right(self._keys, position)
        # Frames may be shown before a key that they follow in the file: they need an earlier one.
        while before and self._packets[self._keys[before - 1]].time > time:
            before -= 1
        return self._keys[before - 1] if before else None

    def _decode(self, first: int, run: _Run) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes the packets from `first` to the run's last; gives frames with their times."""
        for count, frame in enumerate(self._frames_of(first, run)):
            # The decoder guesses what it can't read, and later frames build on its guess.
            if frame.is_corrupt:
                raise UserError(f"{self._name} is damaged: make or copy it again")
            yield count if self._counted else cast(int, frame.pts), frame

    def _frames_of(self, first: int, run: _Run) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        # Of H.264 alone it is certain that no frame depends on one that is said to be left out.
        may_skip = context.name == "h264" and not self._counted
        start, left = self._packets[first], run.last + 1 - first
        self._container.seek(start.seek_to, stream=self._stream)
        found = self._counted
        for packet in self._container.demux(self._stream):
            found = found or packet.pts == start.time  # seeking may end at an earlier key
            if not found or not packet.size or packet.is_corrupt:
                continue
            skip = may_skip and packet.pts not in run.wanted
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            yield from packet.decode()
            left -= 1
            if not left:
                break
        yield from context.decode(None)  # frames held back to be put in order

    def _picture(
        self, frame: av.VideoFrame, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        if turns % 2:
            height, width = width, height
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        # Exact, as in `media.cropping.cover`, whose cuts these are.
        scale = max(Fraction(height, frame.height), Fraction(width, frame.width) / aspect)
        exact_h, exact_w = frame.height * scale, frame.width * aspect * scale
        h, w = max(height, round(exact_h)), max(width, round(exact_w))
        if h * w > MAX_PIXELS:
            raise UserError(
                f"{self._name} is too long and narrow for {width} x {height} pixels: its frames "
                f"are of {frame.width} x {frame.height}"
            )
        planes = self._reformatter.reformat(
            on_white(frame), w, h, _PLANES, interpolation=FILTER, threads=1
        ).planes
        top, left = int(exact_h - height) // 2, int(exact_w - width) // 2
        picture = np.empty((height, width, 3), np.uint8)
        for channel, plane in enumerate(_RED_GREEN_BLUE):
            pixels = np.frombuffer(memoryview(planes[plane]), np.uint8).reshape(h, -1)
            picture[..., channel] = pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(np.rot90(picture, turns))


def _input(file: str | bytes) -> str | io.BytesIO:
    if isinstance(file, str) and "://" in file:
        file = files.read_bytes(file)
    # Without the prefix, a name with a colon would be an address.
    return io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"


@contextlib.contextmanager
def _readable(name: str, file: str | bytes | None) -> Iterator[None]:
    """Says in one line what ffmpeg or the system could not read.

    Args:
        name: What the message calls it.
        file: Asked for what it really is; None once that is known.
    """
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise UserError(f"{name} can't be read: {error.strerror or error}") from error
    except FFmpegError as error:
        if file is not None:
            refuse_placeholder(name, file)
        raise UserError(
            f"{name} is truncated or not a video ({error.strerror}): make or copy it again"
        ) from error
