"""Data sets in their published layouts, as videos by name."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.footage import EXTENSIONS
from dynamicrafter_jax.evaluation.protocol import Data
from dynamicrafter_jax.media.frames import EXTENSIONS as PICTURES
from dynamicrafter_jax.media.frames import is_picture
from dynamicrafter_jax.runtime import files, tables
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

_TFDS = "tfds:"
_UCF_LISTS = "ucfTrainTestlist"
_MSRVTT_LISTS = ("test_videodatainfo.json", "train_val_videodatainfo.json")
_MSRVTT_FOLDERS = ("videos", "TestVideo", "TrainValVideo")
_WEBP_FLAGS, _WEBP_ANIMATED = 20, 2  # a position in the file, and a bit there
_MSRVTT_SPLITS = ("train", "validate", "test")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Videos by name.

    Attributes:
        names: Names of the videos, each once; they don't depend on where the files are.
        groups: What each video belongs to, such as its class, or "". None if groups are the same
            as prompts, which are known only once a video is read.
        read: Returns the video with a number; its file may be missing or broken.
        place: What messages call the data set.
    """

    names: Sequence[str]
    groups: Sequence[str] | None
    read: Callable[[int], Video]
    place: str


def open_data(data: Data, place: str) -> DataSet:
    """Opens the videos of a protocol.

    Args:
        data: Which videos.
        place: The folder of the data set, or `tfds:NAME` for one that TFDS has prepared.

    Raises:
        UserError: A list or folder is missing or can't be read, or there is no such split.
    """
    if place.startswith(_TFDS):
        return _open_tfds(data, place.removeprefix(_TFDS))
    if not as_path(place).is_dir():
        raise UserError(f"{place} is not a folder: give the folder of the data set {data.set}")
    if data.set == "ucf101":
        return _open_ucf101(data, as_path(place))
    if data.set == "msrvtt":
        return _open_msrvtt(data, as_path(place))
    return open_folder(place, captions=data.prompt == "caption")


def open_folder(place: str, *, captions: bool = False) -> DataSet:
    """Opens all videos in a folder and its subfolders.

    A subfolder that holds pictures, and no videos or animations, is itself a video, whose frames
    are the pictures. Pictures next to videos are ignored, and so are those in `place` itself. Names
    are paths within the folder, without extension, and groups are the folders of the videos.

    Args:
        place: The folder.
        captions: Whether prompts are in a `.txt` next to each video; otherwise they are "".

    Raises:
        UserError: There is no folder or no video, two videos have the same name, or a subfolder
            has videos and even more pictures.
    """
    root = os.fspath(as_path(place))
    if not as_path(root).is_dir():
        raise UserError(f"{place} is not a folder: give a folder of videos")
    found = _by_name(root, _videos(root))
    if not found:
        raise UserError(
            f"{place} has no videos: none of {', '.join(EXTENSIONS)}, and no folder of frames "
            "in it; if its own pictures are the frames of a video, give the folder above"
        )
    names = sorted(found)

    def read(number: int) -> Video:
        path = found[names[number]]
        caption = _text(f"{root}/{names[number]}.txt").strip() if captions else ""
        return Video(names[number], caption, path)

    return DataSet(names, [os.path.dirname(name) for name in names], read, root)


def open_images(place: str) -> DataSet:
    """Opens the pictures in a folder and its subfolders, named by their paths without extension.

    Raises:
        UserError: There is no folder or no picture, or two pictures have the same name.
    """
    root = os.fspath(as_path(place))
    if not as_path(root).is_dir():
        raise UserError(f"{place} is not a folder: give a folder of pictures")
    found = _by_name(root, (path for path in _files(root) if is_picture(os.path.basename(path))))
    if not found:
        raise UserError(f"{place} has no pictures: none of {', '.join(PICTURES)}")
    names = sorted(found)

    def read(number: int) -> Video:
        return Video(names[number], "", found[names[number]])

    return DataSet(names, [""] * len(names), read, root)


def _by_name(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Returns paths by their names: relative to a folder, without extension."""
    found: dict[str, str] = {}
    for path in paths:
        name = os.path.relpath(path, root)
        if not os.path.isdir(path):
            name = os.path.splitext(name)[0]
        name = name.replace(os.sep, "/")
        if name in found:
            raise UserError(f"{found[name]} and {path} have the same name: keep one of them")
        found[name] = path
    return found


def _files(root: str) -> Iterator[str]:
    for folder, names in _walk(root):
        yield from (os.path.join(folder, name) for name in names)


def _videos(root: str) -> Iterator[str]:
    for folder, names in _walk(root):
        videos = [name for name in names if name.lower().endswith(EXTENSIONS)]
        pictures = [name for name in names if is_picture(name)]
        moving = [name for name in videos if not _is_still(os.path.join(folder, name))]
        if folder != root and pictures and not moving:
            yield folder
            continue
        pictures = [name for name in pictures if name not in videos]
        if folder != root and len(pictures) > len(videos):
            raise UserError(
                f"{folder} holds videos such as {moving[0]} and more pictures such as "
                f"{pictures[0]}: put them into separate folders, so that it is clear which are "
                "videos"
            )
        yield from (os.path.join(folder, name) for name in videos)


def _is_still(path: str) -> bool:
    """Returns whether a file that may be an animation, such as a `.webp`, has only one frame."""
    if not is_picture(os.path.basename(path)):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(_WEBP_FLAGS + 1)
    except OSError:
        return False  # reading the file will report the error
    return not (header[12:16] == b"VP8X" and header[_WEBP_FLAGS] & _WEBP_ANIMATED)


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields folders and the names of their files, leaving out names that start with a dot."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename or root} can't be read: {error.strerror or error}")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def _open_ucf101(data: Data, root: epath.Path) -> DataSet:
    """Opens `UCF-101/CLASS/v_CLASS_g01_c01.avi`, with `ucfTrainTestlist/` for splits."""
    from dynamicrafter_jax.data.tfds.source import words  # slow to import

    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    if data.split == "all":
        listed = [f"{f.parent.name}/{f.name}" for f in sorted(videos.glob("*/v_*.avi"))]
        where = os.fspath(videos)
    else:
        found = re.fullmatch(r"(train|test)([123])", data.split)
        if found is None:
            raise UserError(
                f"UCF-101 has no split {data.split!r}: choose from all, train1 to train3, "
                "test1 to test3"
            )
        file = root / _UCF_LISTS / f"{found[1]}list0{found[2]}.txt"
        # In the lists of training videos, the class's number follows the path.
        listed = [line.split()[0] for line in _text(file).splitlines() if line.strip()]
        where = os.fspath(file)
    if not listed:
        raise UserError(f"{where} has no videos: give the folder with UCF-101/CLASS/v_*.avi")
    listed.sort(key=os.path.basename)
    names = [os.path.splitext(os.path.basename(path))[0] for path in listed]
    groups = [path.partition("/")[0] for path in listed]

    def read(number: int) -> Video:
        prompt = words(groups[number]) if data.prompt == "class" else ""
        return Video(names[number], prompt, os.fspath(videos / listed[number]))

    _check_prompt(data, ("class", "none"))
    return DataSet(names, groups, read, where)


def _open_msrvtt(data: Data, root: epath.Path) -> DataSet:
    """Opens `videos/video0.mp4`, with the lists of videos and sentences."""
    if data.split not in (*_MSRVTT_SPLITS, "all"):
        splits = ", ".join(_MSRVTT_SPLITS)
        raise UserError(f"MSR-VTT has no split {data.split!r}: choose from all, {splits}")
    lists = [root / name for name in _MSRVTT_LISTS if (root / name).exists()]
    if not lists:
        raise UserError(f"{root} has no {' and no '.join(_MSRVTT_LISTS)}: put one there")
    groups: dict[str, str] = {}
    captions: dict[str, tuple[int, str]] = {}
    for path in lists:
        said = _object(path)
        try:
            for video in said["videos"]:
                if data.split in ("all", video["split"]):
                    groups[str(video["video_id"])] = f"category {video.get('category', '')}".strip()
            for sentence in said["sentences"]:
                numbered = int(sentence["sen_id"]), str(sentence["caption"])
                name = str(sentence["video_id"])
                captions[name] = min(captions.get(name, numbered), numbered)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not an MSR-VTT list: {error} is missing or wrong"
            ) from error
    if not groups:
        raise UserError(f"{' and '.join(map(os.fspath, lists))} list no videos of {data.split!r}")
    names = sorted(groups)
    folders = [*(root / name for name in _MSRVTT_FOLDERS if (root / name).is_dir()), root]

    def read(number: int) -> Video:
        name = names[number]
        if data.prompt == "first_caption" and name not in captions:
            raise UserError(f"{name} has no caption in {' and '.join(map(os.fspath, lists))}")
        prompt = captions[name][1] if data.prompt == "first_caption" else ""
        paths = [folder / f"{name}.mp4" for folder in folders]
        path = next((path for path in paths if path.exists()), paths[0])
        return Video(name, " ".join(prompt.split()), os.fspath(path))

    _check_prompt(data, ("first_caption", "none"))
    return DataSet(names, [groups[name] for name in names], read, os.fspath(root))


def _open_tfds(data: Data, name: str) -> DataSet:
    """Opens a TFDS data set; it keeps no file names, so videos are named by split and number."""
    from dynamicrafter_jax.data.tfds.source import open_tfds  # slow to import

    split = data.split
    if data.set == "ucf101":
        found = re.fullmatch(r"(train|test)([123])", split)
        if found is not None:
            split = found[1]
            name = f"{name}/ucf101_{found[2]}" if name == "ucf101" else name
        elif split == "all":
            split = "train+test"
    source = open_tfds(name, split)
    names = [f"{data.split}-{i:06d}" for i in range(len(source))]

    def read(number: int) -> Video:
        video = source[number]
        return Video(names[number], "" if data.prompt == "none" else video.caption, video.file)

    groups = None if data.prompt == "class" else [""] * len(names)
    return DataSet(names, groups, read, f"{_TFDS}{name} {split}")


def _check_prompt(data: Data, known: Sequence[str]) -> None:
    if data.prompt not in known:
        raise UserError(
            f"{data.set} has no prompts of kind {data.prompt!r}: choose from {', '.join(known)}"
        )


def _object(path: epath.Path) -> dict[str, Any]:
    try:
        said = json.loads(_text(path))
    except json.JSONDecodeError as error:
        refuse_placeholder(path, path)
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} is not a list of videos: a JSON object is needed")
    return said


def _text(path: epath.PathLike) -> str:
    data = files.read_bytes(path)
    try:
        return tables.decode(data)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
