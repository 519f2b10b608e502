"""Sources of videos and captions: a table, a folder or a data set, all read through one API."""

import os

from dynamicrafter_jax.data.folders import VideoFolder
from dynamicrafter_jax.data.videos import Video, VideoSource
from dynamicrafter_jax.data.webvid import WebVidTable
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

_KINDS = "a WebVid .csv, a folder of videos, tfds:NAME or synthetic:train"


class _ListedVideos:
    """Videos in a folder, found through a list of their names and captions."""

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
        videos: The folder that holds a table's `page_dir/videoid.mp4`; None for `videos/` next to
            the table.
        split: Split of a TFDS data set.

    Raises:
        UserError: `source` is none of these, or can't be used. `synthetic:train` and the like,
            which `opening.open_examples` accepts, are refused too: drawn clips are not in files.
    """
    if not source:
        raise UserError(f"no videos are given: set data.source to {_KINDS}")
    if source.startswith("tfds:"):
        from dynamicrafter_jax.data.tfds.source import open_tfds  # slow to import

        return open_tfds(source.removeprefix("tfds:"), split)
    if source.startswith("synthetic:"):
        raise UserError(
            f"{source} has no files, but this command needs files: write some with "
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
