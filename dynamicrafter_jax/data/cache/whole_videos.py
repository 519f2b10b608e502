"""All frames of videos, one after another, decoded ahead in threads."""

import contextlib
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from dynamicrafter_jax.data.cache.format import Entry
from dynamicrafter_jax.data.videos import VideoSource
from dynamicrafter_jax.data.videos.decoding import VideoReader, open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

Frame = UInt8[np.ndarray, "h w 3"]

# Limit on the decoded frames that wait, over all threads. Videos that fit keep every thread busy.
_BYTES_AHEAD = 2**30
_LEAST_AHEAD = 8
_POLL_SECONDS = 0.2


def decode_videos(
    source: VideoSource, items: Iterable[int], height: int, width: int, *, threads: int
) -> Generator[Frame | Entry | None]:
    """Yields each video's frames (None for one that can't be decoded), followed by its `Entry`.

    A video that can't be opened yields no frames, and its entry says why.

    Args:
        source: The videos.
        items: Which of them, by number, in order.
        height: Height of the frames, in pixels; `VideoReader.frames` says how they are resized.
        width: Width of the frames, in pixels.
        threads: How many videos are decoded at once.
    """
    numbers = iter(items)
    room = max(_LEAST_AHEAD, _BYTES_AHEAD // (height * width * 3 * threads))
    closed = threading.Event()

    def start(item: int) -> queue.Queue[Any]:
        waiting: queue.Queue[Any] = queue.Queue(room)
        pool.submit(_decode, source, item, (height, width), _putter(waiting, closed))
        return waiting

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            ahead = deque(start(item) for item in itertools.islice(numbers, threads))
            while ahead:
                waiting, found = ahead.popleft(), None
                while not isinstance(found, Entry):
                    found = waiting.get()
                    if isinstance(found, BaseException):
                        raise found
                    yield found
                ahead.extend(start(item) for item in itertools.islice(numbers, 1))
        finally:
            closed.set()


def every_frame(reader: VideoReader, height: int, width: int) -> Iterator[Frame | UserError]:
    """Yields all frames of a video, and an error in place of each that can't be decoded.

    After a damaged frame it looks for the next one that can be decoded, in steps that double. So
    a whole frame between two damaged parts may be reported as damaged, but never the reverse.
    """
    place = 0
    while place < reader.num_frames:
        try:
            for frame in reader.frames(range(place, reader.num_frames), height, width):
                yield frame
                place += 1
        except UserError as error:
            found, frame = _next_whole(reader, place, (height, width))
            yield from itertools.repeat(error, found - place)
            if frame is not None:
                yield frame
            place = found + 1


def _next_whole(reader: VideoReader, place: int, size: tuple[int, int]) -> tuple[int, Frame | None]:
    """Returns the number of the first frame from `place` on that can be decoded, and the frame.

    If there is none, returns the number of frames and None.
    """

    def read(number: int) -> Frame | None:
        try:
            return reader.read([number], *size)[0]
        except UserError:
            return None

    damaged, last, step = place - 1, reader.num_frames - 1, 1
    number, frame = place, read(place)
    while frame is None:
        if number == last:
            return reader.num_frames, None
        damaged, number, step = number, min(number + step, last), 2 * step
        frame = read(number)
    while number - damaged > 1:
        middle = (damaged + number) // 2
        earlier = read(middle)
        if earlier is None:
            damaged = middle
        else:
            number, frame = middle, earlier
    return number, frame


class _ClosedError(Exception):
    """Nobody takes frames any more."""


def _putter(waiting: queue.Queue[Any], closed: threading.Event) -> Callable[[Any], None]:
    """Returns a function that puts items into a queue, and raises once `closed` is set."""

    def put(found: Any) -> None:
        while not closed.is_set():
            try:
                return waiting.put(found, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
        raise _ClosedError

    return put


def _decode(
    source: VideoSource, item: int, size: tuple[int, int], put: Callable[[Any], None]
) -> None:
    """Decodes a video; unexpected errors go into the queue too, for the main thread to raise."""
    try:
        put(_decode_video(source, item, size, put))
    except _ClosedError:
        return
    except Exception as error:
        put(error)


def _decode_video(
    source: VideoSource, item: int, size: tuple[int, int], put: Callable[[Any], None]
) -> Entry:
    entry = Entry(f"video {item}", "", None, fps=0.0, frames=0, decoded=0, problem="")
    with contextlib.ExitStack() as stack:
        try:
            video = source[item]
            entry = entry._replace(name=video.name, caption=video.caption, file=_path(video.file))
            reader = stack.enter_context(open_video(video.file, video.name))
        except UserError as error:
            return entry._replace(problem=str(error))
        except (OSError, FFmpegError) as error:
            return entry._replace(problem=f"{entry.name} can't be read: {error}")
        problems: list[UserError] = []
        for found in every_frame(reader, *size):
            if isinstance(found, UserError):
                problems.append(found)
            put(None if isinstance(found, UserError) else found)
        return entry._replace(
            fps=reader.fps,
            frames=reader.num_frames,
            decoded=reader.num_frames - len(problems),
            problem=str(problems[0]) if problems else "",
        )


def _path(file: str | bytes) -> str | None:
    """Returns a path that is valid in any working directory, or None for the bytes of a file."""
    if isinstance(file, bytes) or "://" in file:
        return None if isinstance(file, bytes) else file
    return os.path.abspath(files.as_path(file))
