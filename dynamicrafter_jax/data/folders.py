"""A folder of videos, with captions in text files next to them or in one JSONL file."""

import os
import posixpath
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from dynamicrafter_jax.data.texts import Texts, safe_name
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.frames import is_picture
from dynamicrafter_jax.runtime import files, tables

EXTENSIONS = (
    *(".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv"),
    *(".ts", ".webm", ".wmv"),
)
"""Extensions of the files that count as videos, in lower or upper case."""

# Caption files are read when their video is. To catch a wrong encoding before training starts, this
# many are read first; in a remote folder, each of them costs a request.
_CHECKED, _CHECKED_REMOTE = 10_000, 100


class VideoFolder:
    """Names and captions of the videos in a folder and the folders in it."""

    def __init__(self, folder: epath.PathLike) -> None:
        """Lists the folder; names that start with a dot are ignored.

        If there is one `.jsonl` file at the top, its lines are the list, in their order:
        `{"file": path within the folder, "caption": text}`, or `"text"` instead of `"caption"`.
        Otherwise the list is all files with `EXTENSIONS`, sorted by path, and `a/b.txt` holds the
        caption of `a/b.mp4`. A video without a caption gets an empty one, and a warning says how
        many there are.

        Raises:
            UserError: There are no videos, there are captions of both kinds or several `.jsonl`
                files, or one can't be read. The message names the file and the line.
        """
        self._folder = os.fspath(files.as_path(folder))
        found = {
            posixpath.join(path, name) for path, names in _walk(self._folder) for name in names
        }
        videos = sorted(name for name in found if name.lower().endswith(EXTENSIONS))
        sidecars = [name for name in videos if _sidecar(name) in found]
        tables = sorted(name for name in found if "/" not in name and name.endswith(".jsonl"))
        if len(tables) > 1:
            raise UserError(f"{folder} has {', '.join(tables)}: keep one file of captions")
        if tables and sidecars:
            raise UserError(
                f"{folder} has captions in {tables[0]} and in {_sidecar(sidecars[0])}: "
                "keep one kind"
            )
        self._names, self._captions, self._has_caption = Texts(), None, bytearray()
        if tables:
            self._read_table(tables[0], found)
        else:
            self._read_sidecars(videos, found)
        if not len(self):
            hint = "; turn its pictures into videos" if any(map(is_picture, found)) else ""
            raise UserError(f"{folder} has no videos: none of {', '.join(EXTENSIONS)} in it{hint}")
        self._warn(self._has_caption.count(0), "have no caption: an empty one is used")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[str, str]:
        """Returns the path of a video within the folder, and its caption."""
        name = self._names[index]
        if self._captions is not None:
            return name, self._captions[index]
        return name, self._read_sidecar(name) if self._has_caption[index] else ""

    def _read_table(self, table: str, found: set[str]) -> None:
        self._captions, missing = Texts(), 0
        for name, caption in _read_jsonl(f"{self._folder}/{table}"):
            self._names.append(name)
            self._captions.append(caption)
            self._has_caption.append(bool(caption))
            missing += name not in found
        self._warn(missing, f"that {table} lists do not exist and are skipped")

    def _read_sidecars(self, videos: list[str], found: set[str]) -> None:
        for name in videos:
            self._names.append(name)
            self._has_caption.append(_sidecar(name) in found)
        limit = _CHECKED_REMOTE if "://" in self._folder else _CHECKED
        for i in range(min(limit, len(self))):
            self._has_caption[i] = bool(self[i][1])

    def _read_sidecar(self, name: str) -> str:
        path = files.as_path(f"{self._folder}/{_sidecar(name)}")
        try:
            return tables.decode(path.read_bytes()).strip()
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}") from error
        except UserError as error:
            raise UserError(f"{path} {error}") from None

    def _warn(self, count: int, what: str) -> None:
        if count:
            warnings.warn(f"{count} of {len(self)} videos in {self._folder} {what}", stacklevel=4)


def _sidecar(name: str) -> str:
    return posixpath.splitext(name)[0] + ".txt"


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each subfolder, as a path within the folder, and the names of its files."""

    def refuse(error: OSError) -> None:
        where = error.filename or folder
        raise UserError(f"{where} can't be read: {error.strerror or error}") from error

    seen = set()
    if "://" in folder:
        walk = files.as_path(folder).walk(on_error=refuse)
    else:
        walk = os.walk(folder, onerror=refuse, followlinks=True)
    for path, folders, names in walk:
        if "://" not in folder:
            status = os.stat(path)
            if (place := (status.st_dev, status.st_ino)) in seen:  # links may lead in a circle
                folders.clear()
                continue
            seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.fspath(path).partition(folder.rpartition("://")[2])[2].strip("/")
        yield inside, [name for name in names if not name.startswith(".")]


def _read_jsonl(path: str) -> Iterator[tuple[str, str]]:
    """Yields the path of each video and its caption."""
    for number, row in tables.json_rows(path, tables.read_lines(path)):
        with tables.naming(path, number):
            yield _caption_of(row)


def _caption_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the path of a video and its caption, from a line of the table."""
    name, caption = row.get("file"), row.get("caption", row.get("text"))
    if not isinstance(name, str):
        raise UserError('is not of the form {"file": "a.mp4", "caption": "..."}')
    if caption is not None and not isinstance(caption, str):
        raise UserError(f"has the caption {caption!r}: put text between double quotes")
    return safe_name(name), (caption or "").strip()
