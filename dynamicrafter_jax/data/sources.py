"""Where videos and captions come from: a table, a folder or a data set, all read alike."""

import os
from typing import NamedTuple, Protocol, runtime_checkable

from dynamicrafter_jax import files
from dynamicrafter_jax.data.folders import VideoFolder
from dynamicrafter_jax.data.webvid import WebVidTable
from dynamicrafter_jax.errors import UserError

_KINDS = "a WebVid .csv, a folder of videos, tfds:NAME or synthetic:train"


class Video(NamedTuple):
    """One video of a source.

    Attributes:
        name: What logs and messages call it.
        caption: Its prompt, or "".
        file: A path, local or remote, or the bytes of a file.
    """

    name: str
    caption: str
    file: str | bytes


@runtime_checkable
class VideoSource(Protocol):
    """Videos by number, in a fixed order. Worker processes get it by pickle."""

    def __len__(self) -> int:
        """Returns how many videos there are."""
        ...

    def __getitem__(self, index: int) -> Video:
        """Returns a video by its number, from 0; the file may be missing or broken."""
        ...


class _ListedVideos:
    """Videos that lie in a folder, by a list of their names and captions."""

    def __init__(self, listing: VideoFolder | WebVidTable, folder: str) -> None:
        self._listing, self._folder = listing, folder

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> Video:
        name, caption = self._listing[index]
        return Video(name, caption, f"{self._folder}/{name}")


def open_source(source: str, *, videos: str | None = None, split: str = "train") -> VideoSource:
    """Opens the videos that a config names.

    Args:
        source: A `.csv` in the WebVid layout (`WebVidTable`), a folder of videos (`VideoFolder`),
            or `tfds:NAME`, a TFDS data set; table and folder may be remote.
        videos: The folder that a table's `page_dir/videoid.mp4` lie in; None for `videos/` beside
            the table.
        split: Of a TFDS data set.

    Raises:
        UserError: `source` is nothing of this, or can't be used; says what is wrong in it. So for
            `synthetic:train`, which `opening.open_examples` takes: clips that are drawn are not
            in files.
    """
    if not source:
        raise UserError(f"no videos are named: set data.source to {_KINDS}")
    if source.startswith("tfds:"):
        from dynamicrafter_jax.data.tfds_source import open_tfds  # slow to import

        return open_tfds(source.removeprefix("tfds:"), split)
    if source.startswith("synthetic:"):
        raise UserError(
            f"{source} has no files, which are needed here: write some by "
            "python -m dynamicrafter_jax.data.synthetic, and give their folder"
        )
    path = files.as_path(source)
    if path.is_dir():
        return _ListedVideos(VideoFolder(path), os.fspath(path))
    if path.suffix.lower() != ".csv":
        what = "can't be read as videos" if path.exists() else "does not exist"
        raise UserError(f"{source} {what}: set data.source to {_KINDS}")
    table = WebVidTable(path)
    folder = path.parent / "videos" if videos is None else files.as_path(videos)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: set data.videos to the one with the videos")
    return _ListedVideos(table, os.fspath(folder))
