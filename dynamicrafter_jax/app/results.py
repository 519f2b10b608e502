"""The videos of a page on disk: each in a folder of its own, the oldest removed."""

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
    """Where a video is.

    Attributes:
        video: The `.mp4`.
        poster: A frame of it, a `.png`.
    """

    video: Path
    poster: Path

    @property
    def exists(self) -> bool:
        """Whether it is still kept."""
        return self.video.exists()


class ResultStore:
    """Keeps the newest videos of all people.

    A video's folder has a name that can't be guessed, since who knows the path of a file that the
    page serves can see it.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Takes over the videos that are there.

        Args:
            folder: Where to; made if need be.
            keep: How many are kept.
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
            name: What its file is called, in any words.
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
        """Removes a video that nobody will see again."""
        place = stored.video.parent
        with self._lock:
            self._order = [folder for folder in self._order if folder != place]
        shutil.rmtree(place, ignore_errors=True)


class UploadStore:
    """Keeps what people upload within a size and a number: the oldest is removed.

    Each upload is a folder of one level in `folder`, beside others that are left alone.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_files: int) -> None:
        """Leaves alone what is in the folder now.

        Args:
            folder: Where uploads go.
            max_bytes: How much may lie there.
            max_files: How many.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._others = set(folder.iterdir())

    def trim(self) -> None:
        """Removes the oldest uploads until the rest is within both."""
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
    """Returns words as the name of a file: "The camera pans!" is "the-camera-pans"."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower())[:60].strip("-") or "video"


def _bytes_in(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file())
