"""Videos as a TFDS data set: files copied unchanged, prepared and read without TensorFlow."""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NoReturn, cast

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from dynamicrafter_jax.data.videos import Video, VideoSource
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

VERSION = "1.0.0"
"""Version of the layout: the last part of a data set's folder, `DATA_DIR/NAME/VERSION`."""

# A reader keeps a file open for each shard that it has read from; the usual limit is 1024 files.
_MAX_SHARDS = 512
_VIDEOS_A_SHARD = 256
_FILES_AT_ONCE = 16
_COPIED_AT_ONCE = 2**24  # bytes


def prepare(
    source: VideoSource, name: str, data_dir: epath.PathLike, *, progress: bool = False
) -> epath.Path:
    """Copies the videos of a source into a TFDS data set with a single split, `train`.

    Each example holds `name` and `caption` (text) and `video` (the bytes of the file), in the
    source's order. A file that can't be read keeps its place, empty, and causes a warning.

    Args:
        source: The videos.
        name: Name of the data set: a lower-case letter, then lower-case letters, digits and _.
        data_dir: Folder of TFDS data sets, local or remote.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        The data set's folder, `DATA_DIR/NAME/VERSION`. It appears once everything is written.

    Raises:
        UserError: The name can't be used or is taken, the source is empty, or writing fails.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"{name!r} can't name a data set: give a lower-case letter, then lower-case letters, "
            "digits and _"
        )
    if not len(source):
        raise UserError("there are no videos to prepare")
    folder = files.as_path(data_dir) / name / VERSION
    if folder.exists():
        raise UserError(f"{folder} exists: give another name, or remove it")
    files.check_writable(folder, folder=True)
    try:
        files.as_path(data_dir).mkdir(parents=True, exist_ok=True)
        builder = EncodedVideos(source, name, files.utf8_path(data_dir), progress=progress)
        # TFDS makes a folder for downloads and reports on stdout, though nothing is downloaded.
        with tempfile.TemporaryDirectory() as none, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=none, file_format="array_record")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} can't be written: {reason}; check the disk") from error
    return folder


class EncodedVideos(tfds.core.DatasetBuilder, skip_registration=True):
    """The TFDS builder of any source of videos; `prepare` runs it.

    It writes shards itself, one after the other, in order: TFDS's own writers hold a whole shard in
    memory or need TensorFlow.
    """

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # where TFDS looks for the checksums of downloads

    def __init__(
        self, source: VideoSource, name: str, data_dir: epath.Path, *, progress: bool = False
    ) -> None:
        """Makes a builder; see `prepare`."""
        object.__setattr__(self, "name", name)  # TFDS expects the name on the class
        self._source, self._progress = source, progress
        super().__init__(data_dir=os.fspath(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
            "video": tfds.features.Tensor(shape=(), dtype=np.object_, doc="bytes of a video file"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Videos with captions.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: object, download_config: object = None) -> None:
        count = len(self._source)
        num_shards = min(-(-count // _VIDEOS_A_SHARD), _MAX_SHARDS)
        bounds = [count * shard // num_shards for shard in range(num_shards + 1)]
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split="train",
            filetype_suffix="array_record",
        )
        with tqdm(
            total=count, unit="video", file=sys.stderr, disable=None if self._progress else True
        ) as bar:
            num_bytes = [
                self._write_shard(
                    template.sharded_filepath(shard_index=shard, num_shards=num_shards),
                    range(bounds[shard], bounds[shard + 1]),
                    bar,
                )
                for shard in range(num_shards)
            ]
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=np.diff(bounds).tolist(),
            num_bytes=sum(num_bytes),
            filename_template=template,
        )
        self.info.set_splits(tfds.core.SplitDict([split]))

    def _write_shard(self, path: epath.Path, items: Sequence[int], bar: tqdm) -> int:
        """Writes some videos to a file, and returns how many bytes they take."""
        features = cast(tfds.features.FeaturesDict, self.info.features)
        num_bytes = 0
        with _local_file(path) as file:
            # Videos are compressed already.
            writer = ArrayRecordWriter(file, "group_size:1,uncompressed")
            for video, data in self._read(items):
                named = video.name.encode(errors="surrogateescape")  # file names may be any bytes
                example = {"name": named, "caption": video.caption, "video": data}
                record = features.serialize_example(example)
                writer.write(record)
                num_bytes += len(record)
                bar.update()
            writer.close()  # raises the errors of writing
        return num_bytes

    def _read(self, items: Sequence[int]) -> Iterator[tuple[Video, bytes]]:
        remaining = iter(items)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            while chunk := list(islice(remaining, _FILES_AT_ONCE)):
                for video, data, problem in pool.map(self._read_file, chunk):
                    if problem:
                        warnings.warn(f"{problem}; its place is kept, empty", stacklevel=2)
                    yield video, data

    def _read_file(self, item: int) -> tuple[Video, bytes, str]:
        """Reads a video; returns it, the bytes of its file, and what went wrong, if anything."""
        video = self._source[item]
        if isinstance(video.file, bytes):
            return video, video.file, "" if video.file else f"{video.name} is empty"
        try:
            return video, files.read_bytes(video.file), ""
        except UserError as error:
            return video, b"", str(error)

    def _as_dataset(self, *_: object, **__: object) -> NoReturn:
        # TFDS demands this method; the data set is for `as_data_source`, which it makes itself.
        raise NotImplementedError("encoded videos are read by as_data_source, without TensorFlow")


@contextlib.contextmanager
def _local_file(path: epath.Path) -> Iterator[str]:
    """Gives a local file that is copied to `path`, since ArrayRecord writes only local files."""
    if "://" not in os.fspath(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, path.name)
        yield file
        with open(file, "rb") as source, path.open("wb") as destination:
            shutil.copyfileobj(source, destination, _COPIED_AT_ONCE)
