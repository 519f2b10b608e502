"""The videos and uploads of a page on disk; the oldest are removed."""

import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dynamicrafter_jax import media


@dataclass(frozen=True)
class Stored:
    """The files of a video.

    Attributes:
        video: The `.mp4`.
        poster: A frame of it, a `.png`.
    """

    video: Path
    poster: Path

    @property
    def exists(self) -> bool:
        """Whether the video is still kept."""
        return self.video.exists()


class ResultStore:
    """Keeps the newest videos of all users.

    A video's folder has a name that can't be guessed, because anyone who knows the path of a file
    that the page serves can see it.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Takes over the videos that are already there.

        Args:
            folder: Folder of the videos; made if it does not exist.
            keep: How many videos to keep.
        """
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._order = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime)

    def add(self, frames: UInt8[np.ndarray, "t h w 3"], fps: float | int, name: str) -> Stored:
        """Writes a video, and removes the oldest if there are too many.

        Args:
            frames: The video.
            fps: Frames a second of the file.
            name: A name for its file, as any text.
        """
        place = self._folder / secrets.token_urlsafe(16)
        stored = Stored(place / f"{slug(name)}.mp4", place / "poster.png")
        media.write_video(stored.video, frames, fps)
        media.write_png(stored.poster, frames[len(frames) // 2])
        with self._lock:
            self._order.append(place)
            old, self._order = self._order[: -self._keep], self._order[-self._keep :]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        return stored

    def remove(self, stored: Stored) -> None:
        """Removes a video that nobody will ask for again."""
        place = stored.video.parent
        with self._lock:
            self._order = [folder for folder in self._order if folder != place]
        shutil.rmtree(place, ignore_errors=True)


class UploadStore:
    """Keeps uploads within a total size and number, by removing the oldest.

    Each upload is a subfolder of `folder`; what else is in there is left alone.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_files: int) -> None:
        """Marks what is in the folder now as not being uploads.

        Args:
            folder: Folder of the uploads.
            max_bytes: Limit on their total size.
            max_files: Limit on their number.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._others = set(folder.iterdir())

    def trim(self) -> None:
        """Removes the oldest uploads until the rest is within both limits."""
        entries = [entry for entry in self._folder.iterdir() if entry not in self._others]
        sized = [(entry.stat().st_mtime, _bytes_in(entry), entry) for entry in entries]
        total, count = sum(size for _, size, _ in sized), len(sized)
        for _, size, entry in sorted(sized):
            if total <= self._max_bytes and count <= self._max_files:
                return
            total, count = total - size, count - 1
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def slug(words: str) -> str:
    """Returns a text as a file name: "The camera pans!" becomes "the-camera-pans"."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower())[:60].strip("-") or "video"


def _bytes_in(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file())
