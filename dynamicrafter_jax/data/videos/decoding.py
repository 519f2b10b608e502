"""Reads chosen frames of a video file by number: exact, resized, with no needless decoding."""

import contextlib
import io
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from dynamicrafter_jax.data.videos.packets import PacketRun, read_index, usable_packets
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import MAX_PIXELS, MIN_SIDE
from dynamicrafter_jax.media.orientation import of_frame
from dynamicrafter_jax.media.transparency import on_white
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

# Formats that hold their own data. ffmpeg's others include playlists, which would let whoever made
# the video choose files or addresses to open.
_FORMATS = "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ogg,ivf"

# Those in which times may repeat, so that the start is sought by a position in the file.
_SOUGHT_BY_BYTES = ("mpegts", "mpeg", "flv")

# PyAV 18 fails on titles and other tags in an old encoding unless told not to; later ones don't.
_ANY_TAGS: Any = {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}

FILTER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
"""How frames are resized and converted: bicubic, with colours rounded and computed per pixel."""

# swscale is several times faster at separate planes of green, blue and red than at packed RGB.
_PLANES, _RED_GREEN_BLUE = "gbrp", (2, 0, 1)


@contextlib.contextmanager
def open_video(file: str | bytes, name: str) -> Iterator["VideoReader"]:
    """Opens a video, and finds its frames without decoding them.

    Args:
        file: A path, local or remote, or the bytes of a file.
        name: What error messages call it.

    Raises:
        UserError: The file is missing, cut off, not a video or without frames, or its frames have
            sides under `MIN_SIDE` or more than `MAX_PIXELS` pixels.
    """
    with contextlib.ExitStack() as stack:
        with _readable(name, file):
            options = {"format_whitelist": _FORMATS}
            container = av.open(_input(file), "r", options=options, **_ANY_TAGS)
            reader = VideoReader(stack.enter_context(container), name)
        yield reader


class VideoReader:
    """Frames of an open video by number, in the order in which they are shown.

    It decodes in one thread, since one worker process per core gives more clips a second.

    Attributes:
        num_frames: Frames that can be shown. Frames that an edit list cuts out don't count, nor do
            those before the first frame that decoding can start at.
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
        self._name, self._container, self._stream = name, container, stream
        self._index, self._orientation = read_index(container, stream)
        self.num_frames = self._index.num_frames
        rate = self._index.rate(
            cast(Fraction, stream.time_base),
            stream.average_rate,
            may_jump=Flags.ts_discont in Flags(container.format.flags),
        )
        rate = rate or stream.guessed_rate
        if not self.num_frames or not rate:
            raise UserError(f"{name} holds no frames or no frame rate: make or copy it again")
        if min(stream.height, stream.width) < MIN_SIDE or stream.height * stream.width > MAX_PIXELS:
            raise UserError(
                f"{name} has frames of {stream.width} x {stream.height} pixels: give a video with "
                f"sides of {MIN_SIDE} or more and up to {MAX_PIXELS // 1_000_000} million pixels"
            )
        self.fps = float(rate)
        self._reformatter = VideoReformatter()

    def read(
        self, indices: Sequence[int], height: int, width: int
    ) -> UInt8[np.ndarray, "t height width 3"]:
        """Returns the frames with these numbers; see `frames`."""
        video = np.empty((len(indices), height, width, 3), np.uint8)
        for place, frame in enumerate(self.frames(indices, height, width)):
            video[place] = frame
        return video

    def frames(
        self, indices: Sequence[int], height: int, width: int
    ) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
        """Yields frames one by one, so that a video of any length fits in memory.

        A frame does not depend on which others are asked for. It is turned upright, resized to
        cover height x width (bicubic, widened when shrinking) and center-cropped; its pixels are
        made square, and its colours follow the file's tags.

        Args:
            indices: Numbers of frames from 0 to num_frames - 1, each larger than the one before.
            height: Height of the results, in pixels.
            width: Width of the results, in pixels.

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
        for run in self._index.runs(indices):
            missing = dict(run.wanted)
            # With gradual refresh, pictures right after a key frame are whole only if decoding
            # starts earlier. And seeking fails if a time occurs twice in a file.
            for from_start in (True,) if self._index.counted else (False, True):
                for label, frame in self._decode(run, from_start) if missing else ():
                    if label in missing:
                        waiting[missing.pop(label)] = self._picture(frame, height, width)
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

    def _decode(self, run: PacketRun, from_start: bool) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes a run, or all packets up to its last, and yields frames with their labels."""
        latest = -math.inf
        for count, frame in enumerate(self._frames_of(run, from_start)):
            # The decoder guesses what it can't read, and later frames build on its guess.
            if frame.is_corrupt:
                raise UserError(f"{self._name} is damaged: make or copy it again")
            if self._index.counted:
                yield count, frame
                continue
            time = cast(int, frame.pts)
            if self._index.in_file_order and time < latest:
                raise UserError(
                    f"{self._name} stores when its frames are decoded, not when they are shown: "
                    f"encode it again"
                )
            latest = time
            yield time, frame

    def _frames_of(self, run: PacketRun, from_start: bool) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        # Only H.264 guarantees that no frame depends on one that is marked as skippable.
        may_skip = context.name == "h264" and not self._index.counted
        left = run.last + 1 - (self._index.first_key if from_start else run.first)
        for packet in self._from_start() if from_start else self._from_key(run.first):
            skip = may_skip and packet.pts not in run.wanted
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            yield from packet.decode()
            left -= 1
            if not left:
                break
        yield from context.decode(None)  # frames held back to be put in order

    def _from_key(self, key: int) -> "Iterator[av.Packet[av.VideoStream]]":
        start = self._index.packets[key]
        self._container.seek(start.time_in_file, stream=self._stream)
        packets = usable_packets(self._container, self._stream)
        # Seeking may end at an earlier key.
        return itertools.dropwhile(lambda p: p.pts != start.pts or not p.is_keyframe, packets)

    def _from_start(self) -> "Iterator[av.Packet[av.VideoStream]]":
        if self._container.format.name in _SOUGHT_BY_BYTES:
            self._container.seek(0, stream=self._stream, unsupported_byte_offset=True)
        else:
            time = min(packet.time_in_file for packet in self._index.packets)
            self._container.seek(time, stream=self._stream)
        expected = self._index.packets
        count = 0
        for packet in usable_packets(self._container, self._stream):
            if not count and packet.pos != expected[0].place:
                break
            count += 1
            if count > self._index.first_key:
                yield packet
        if count < len(expected):
            raise UserError(
                f"{self._name} can't be read again from its start, perhaps because it is several "
                f"files joined together: encode it again"
            )

    def _picture(
        self, frame: av.VideoFrame, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        orientation = self._orientation or of_frame(frame)
        if orientation.transposed:
            height, width = width, height
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        # Exact, as in `media.cropping.cover`, which crops in the same way.
        scale = max(Fraction(height, frame.height), Fraction(width, frame.width) / aspect)
        exact_h, exact_w = frame.height * scale, frame.width * aspect * scale
        h, w = max(height, round(exact_h)), max(width, round(exact_w))
        if h * w > MAX_PIXELS:
            raise UserError(
                f"{self._name} is too long and narrow for {width} x {height} pixels: its frames "
                f"have {frame.width} x {frame.height}"
            )
        planes = self._reformatter.reformat(
            on_white(frame), w, h, _PLANES, interpolation=FILTER, threads=1
        ).planes
        top, left = int(exact_h - height) // 2, int(exact_w - width) // 2
        # An odd number of pixels is split as it would be if the frame were cut after turning.
        if orientation.flips_height:
            top = h - height - top
        if orientation.flips_width:
            left = w - width - left
        picture = np.empty((height, width, 3), np.uint8)
        for channel, plane in enumerate(_RED_GREEN_BLUE):
            pixels = np.frombuffer(memoryview(planes[plane]), np.uint8).reshape(h, -1)
            picture[..., channel] = pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(orientation.upright(picture))


def _input(file: str | bytes) -> str | io.BytesIO:
    if isinstance(file, str) and "://" in file:
        file = files.read_bytes(file)
    # Without the prefix, a name with a colon would be an address.
    return io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"


@contextlib.contextmanager
def _readable(name: str, file: str | bytes | None) -> Iterator[None]:
    """Turns the errors of ffmpeg and of the system into one-line messages.

    Args:
        name: What the messages call the video.
        file: The file, checked for being a placeholder; None once it has been opened.
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
