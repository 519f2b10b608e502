"""Writes the shards of a latent cache."""

import contextlib
import os
import shutil
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import UInt8

from dynamicrafter_jax.data.cache.format import (
    RECIPE_FILE,
    DamagedCacheError,
    Entry,
    Recipe,
    index_name,
    is_cache_file,
    read_index,
    read_recipe,
    records_name,
    write_index,
    write_recipe,
)
from dynamicrafter_jax.data.cache.whole_videos import Frame, decode_videos
from dynamicrafter_jax.data.videos import VideoSource
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

# One record per group, for random access. These numbers hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_COPY_BYTES = 2**24

Encoded = Mapping[str, Any]
"""Values by kind that `np.asarray` turns into arrays; they may still be being computed."""


@runtime_checkable
class FrameEncoder(Protocol):
    """The networks whose outputs are cached. All results have the cache's type.

    Attributes:
        batch_size: How many frames `frames` takes.
    """

    batch_size: int

    def frames(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Encoded:
        """Returns moments, and vision tokens if they are cached, of `batch_size` frames."""
        ...

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the text states of captions; called only if they are cached."""
        ...

    def zero_image(self) -> np.ndarray:
        """Returns the vision tokens of the zero image; called only if they are cached."""
        ...


def prepare(folder: epath.PathLike, recipe: Recipe) -> None:
    """Starts a cache in a new or empty folder, or checks that the one there can be resumed.

    Several processes may call it at once.

    Raises:
        UserError: The folder holds another cache or something else, or can't be written to.
    """
    path = files.as_path(folder)
    begun = read_recipe(path)
    if begun is None:
        files.check_writable(path / RECIPE_FILE)
        names = [file.name for file in path.iterdir()] if path.is_dir() else []
        if strange := sorted(name for name in names if not is_cache_file(name)):
            raise UserError(f"{folder} has other files in it ({strange[0]}): give a new --output")
        write_recipe(path, recipe)
    elif differences := begun.differences(recipe):
        raise UserError(
            f"{folder} has a cache made with {differences}: give another --output, or remove it"
        )


def missing_shards(
    folder: epath.PathLike, recipe: Recipe, source: VideoSource, shards: Iterable[int]
) -> list[int]:
    """Returns which of the given shards are missing or not whole.

    Raises:
        UserError: A shard holds other videos than the source has now.
    """
    return [shard for shard in shards if not _is_whole(folder, recipe, source, shard)]


def write_shards(
    folder: epath.PathLike,
    recipe: Recipe,
    source: VideoSource,
    encoder: FrameEncoder,
    shards: Sequence[int],
    *,
    threads: int,
    watch: Callable[[int, int], None],
) -> None:
    """Writes shards one after another, replacing incomplete ones.

    Args:
        folder: Folder of the cache, local or remote.
        recipe: What is cached.
        source: The videos.
        encoder: The networks.
        shards: Which shards.
        threads: How many videos are decoded at once.
        watch: Called after each video with the videos (1) and frames that were added.

    Raises:
        UserError: Writing fails.
    """
    path = files.as_path(folder)
    items = (item for shard in shards for item in recipe.items(shard))
    decoded = decode_videos(source, items, recipe.height, recipe.width, threads=threads)
    with contextlib.closing(decoded):
        encoded = _encode(encoder, decoded)
        for shard in shards:
            _write_shard(path, recipe, encoder, shard, encoded, watch)


def _encode(
    encoder: FrameEncoder, decoded: Iterable[Frame | Entry | None]
) -> Iterator[Encoded | Entry | None]:
    """Encodes the frames in a sequence and passes on the rest, all in order.

    While a batch is computed, the next one is collected.
    """
    computing: deque[tuple[list[Any], Encoded]] = deque()
    batch: list[Any] = []
    frames: list[Frame] = []

    def compute() -> None:
        padding = [frames[-1]] * (encoder.batch_size - len(frames)) if frames else []
        rows = np.stack(frames + padding) if frames else None
        computing.append((batch.copy(), {} if rows is None else encoder.frames(rows)))
        batch.clear()
        frames.clear()

    for found in decoded:
        batch.append(found)
        if isinstance(found, np.ndarray):
            frames.append(found)
        if len(frames) == encoder.batch_size:
            compute()
            if len(computing) > 1:
                yield from _rows(*computing.popleft())
    compute()
    for started in computing:
        yield from _rows(*started)


def _rows(batch: Sequence[Any], encoded: Encoded) -> Iterator[Encoded | Entry | None]:
    arrays = {kind: np.asarray(values) for kind, values in encoded.items()}
    row = 0
    for found in batch:
        if isinstance(found, np.ndarray):
            yield {kind: values[row] for kind, values in arrays.items()}
            row += 1
        else:
            yield found


def _write_shard(
    folder: epath.Path,
    recipe: Recipe,
    encoder: FrameEncoder,
    shard: int,
    encoded: Iterator[Encoded | Entry | None],
    watch: Callable[[int, int], None],
) -> None:
    index = folder / index_name(shard)
    index.unlink(missing_ok=True)
    for leftover in folder.glob(f".*-{shard:05d}.*.tmp"):
        leftover.unlink(missing_ok=True)
    of_frames = [kind for kind in recipe.shapes if kind != "text"]
    videos: list[Entry] = []
    with contextlib.ExitStack() as stack:
        writers = {
            kind: stack.enter_context(_records(folder / records_name(kind, shard)))
            for kind in recipe.shapes
        }
        while len(videos) < len(recipe.items(shard)):
            found = next(encoded)
            if isinstance(found, Entry):
                videos.append(found)
                if found.problem:
                    warnings.warn(f"{found.problem}; its place is kept", stacklevel=2)
                watch(1, found.decoded)
                continue
            for kind in of_frames:
                writers[kind].write(b"" if found is None else found[kind].tobytes())
        if "vision" in recipe.shapes:
            writers["vision"].write(encoder.zero_image().tobytes())
        if "text" in recipe.shapes:
            for states in encoder.captions([*(video.caption for video in videos), ""]):
                writers["text"].write(states.tobytes())
    write_index(folder, shard, videos)


def _is_whole(folder: epath.PathLike, recipe: Recipe, source: VideoSource, shard: int) -> bool:
    path = files.as_path(folder)
    if not (path / index_name(shard)).exists():
        return False
    try:
        index = read_index(path, shard)
    except DamagedCacheError:
        return False
    items = recipe.items(shard)
    for item, video in ((items[0], index.videos[0]), (items[-1], index.videos[-1])):
        name = _name(source, item)
        if f"video {item}" not in (name, video.name) and name != video.name:
            raise UserError(
                f"{path / index_name(shard)} has {video.name} where the source now has {name}: "
                "the cache was started with other videos, so give another --output"
            )
    return all(
        (path / name).exists() and (path / name).stat().length == size
        for name, size in index.files.items()
    )


def _name(source: VideoSource, item: int) -> str:
    """Returns the name that `decode_videos` gives a video."""
    try:
        return source[item].name
    except (UserError, OSError):
        return f"video {item}"


@contextlib.contextmanager
def _records(path: epath.Path) -> Iterator["_Records"]:
    """Gives a writer of records; the file appears only when whole, and a remote one is a copy."""
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(files.atomic(path))
        local = temporary
        if "://" in os.fspath(path):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            local = epath.Path(folder) / path.name
        records = _Records(local, path)
        try:
            yield records
        finally:
            records.close()
        if local != temporary:
            with local.open("rb") as whole, temporary.open("wb") as copy:
                shutil.copyfileobj(whole, copy, _COPY_BYTES)


class _Records:
    """An ArrayRecord writer that turns the system's errors into one-line messages."""

    def __init__(self, local: epath.Path, path: epath.Path) -> None:
        self._path = path
        self._writer = ArrayRecordWriter(os.fspath(files.utf8_path(local)), _WRITER_OPTIONS)

    def write(self, record: bytes) -> None:
        with self._refusals():
            self._writer.write(record)

    def close(self) -> None:
        with self._refusals():
            self._writer.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._path} can't be written: {reason}; check the disk") from error
