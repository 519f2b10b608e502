"""Reads the records of a latent cache by number."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from dynamicrafter_jax.data.cache.format import (
    DamagedCacheError,
    Entry,
    index_name,
    read_index,
    records_name,
)
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

# By default, a process may have about 1000 open files, and a shard has up to three.
_OPEN_SHARDS = 128
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_BUFFER_BYTES = 2**15


class Shards:
    """The shards of a cache, opened when first read; the most recently used stay open.

    It is pickled for worker processes, which open their own files.
    """

    def __init__(self, folder: epath.PathLike) -> None:
        """Takes the folder; no file is opened yet.

        Args:
            folder: Folder of the cache, on this machine or in a `gs://` bucket.

        Raises:
            UserError: The folder is somewhere else.
        """
        self._folder = files.as_path(folder)
        scheme, found, _ = os.fspath(self._folder).partition("://")
        if found and scheme != "gs":
            raise UserError(f"{folder} can't be read from {scheme}://: copy it to this machine")
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def video(self, shard: int, place: int) -> Entry:
        """Returns the video at a place in a shard.

        Raises:
            DamagedCacheError: The shard's index can't be read.
        """
        return self._shard(shard).videos[place]

    def frames(self, kind: str, shard: int, place: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the records of frames of a video; those of undecodable frames are empty.

        Args:
            kind: "moments" or "vision".
            shard: Number of the shard.
            place: Place of the video in the shard.
            frames: Numbers of the frames in the video.

        Raises:
            DamagedCacheError: The records can't be read.
        """
        first = self._shard(shard).first_frames[place]
        return self._read(kind, shard, [first + frame for frame in frames])

    def text(self, shard: int, place: int) -> bytes:
        """Returns the record of a video's caption; see `frames`."""
        return self._read("text", shard, [place])[0]

    def dropped(self, kind: str, shard: int) -> bytes:
        """Returns the record that stands for a dropped condition: that of "" or the zero image."""
        opened = self._shard(shard)
        last = len(opened.videos) if kind == "text" else opened.first_frames[-1]
        return self._read(kind, shard, [last])[0]

    def _shard(self, number: int) -> "_Shard":
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) == _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[number] = opened = _Shard(self._folder, number)
        return opened

    def _read(self, kind: str, shard: int, numbers: Sequence[int]) -> list[bytes]:
        try:
            return self._shard(shard).reader(kind).read(numbers)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DamagedCacheError(
                f"{self._folder / records_name(kind, shard)} can't be read ({reason}): if it is "
                f"damaged, remove {index_name(shard)} next to it and run the command that makes "
                "the cache again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_open": OrderedDict()}


class _Shard:
    """One shard, whose files are opened when first read.

    Attributes:
        videos: The videos of the shard, in order.
        first_frames: Number of each video's first record of a frame, and the number of all frames.
    """

    def __init__(self, folder: epath.Path, number: int) -> None:
        self.videos = read_index(folder, number).videos
        self.first_frames = [0, *itertools.accumulate(video.frames for video in self.videos)]
        self._folder, self._number = folder, number
        self._readers: dict[str, ArrayRecordReader] = {}

    def reader(self, kind: str) -> ArrayRecordReader:
        if kind not in self._readers:
            path = os.fspath(files.utf8_path(self._folder / records_name(kind, self._number)))
            self._readers[kind] = ArrayRecordReader(
                path, _READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
            )
        return self._readers[kind]

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
