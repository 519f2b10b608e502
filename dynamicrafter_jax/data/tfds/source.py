"""Videos of TFDS data sets, by name.

Data sets that hold encoded files, such as those that `tfds.builder` writes, are read without
TensorFlow. TFDS's own, such as `ucf101`, hold the frames of a video as pictures; TFDS needs
TensorFlow to find them. They must be prepared as ArrayRecord, which allows random access.
"""

import contextlib
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
import tensorflow_datasets as tfds
from av.error import FFmpegError
from etils import epath

from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.pillow import size_of_picture
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

_INFO = "dataset_info.json"
_CAPTIONS = ("caption", "text", "prompt", "description", "title", "sentence")
_NAMES = ("name", "id", "video_id", "filename")
_CODECS = {b"\x89PNG": ("png", "rgb24"), b"\xff\xd8\xff": ("mjpeg", "yuvj420p")}
_EXTRA = 'pip install "dynamicrafter-jax[tfds]"'


def open_tfds(
    name: str,
    split: str = "train",
    *,
    data_dir: epath.PathLike | None = None,
    video: str | None = None,
    caption: str | None = None,
    fps: float | int = 25.0,
) -> "TfdsVideos":
    """Opens the videos of a TFDS data set.

    Args:
        name: Its name, with config and version if needed (`ucf101/ucf101_1:2.0.0`), or its folder.
        split: Which part of it, in TFDS's notation: `train`, `train[:90%]`.
        data_dir: Folder of prepared data sets; None for TFDS's own (`TFDS_DATA_DIR`, or else
            `~/tensorflow_datasets`).
        video: The feature that holds the videos; None for the only one that can.
        caption: The feature to take prompts from; None for the only text, the text whose name says
            that it is a caption, or else the only label, in words. If there is none of these,
            prompts are "".
        fps: Frames a second of data sets that hold pictures, which don't store it.

    Raises:
        UserError: There is no such data set or split, it is not prepared or not for random access,
            its features are ambiguous, or TensorFlow is needed and missing.
    """
    root = files.as_path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    folder = _prepared(name, root)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a banner if TensorFlow is missing
            folder = folder or _known(name, root)
            features: Any = tfds.builder_from_directory(folder).info.features
            chosen = choose_features(name, dict(features.items()), video, caption)
            records = _records(folder, split, chosen)
    except ImportError as error:
        raise UserError(
            f"the TFDS data set {name} needs {error.name or 'more packages'}: {_EXTRA}"
        ) from error
    except NotImplementedError:  # what TFDS raises without random access
        raise UserError(
            f"{folder} has no random access: prepare it again in another --data_dir, "
            f"with tfds build --file_format=array_record"
        ) from None
    if not len(records):
        raise UserError(f"the split {split!r} of the TFDS data set {name} is empty")
    return TfdsVideos(folder, split, chosen, fps, len(records))


class Chosen(NamedTuple):
    """The features of a data set that serve as video, caption and name; "" for none."""

    video: str
    caption: str
    name: str
    labels: tuple[str, ...]  # what the values of `caption` mean, if it is a label


class TfdsVideos:
    """The videos of a split, by number. Each process that uses it opens its own files."""

    def __init__(
        self, folder: str, split: str, chosen: Chosen, fps: float | int, length: int
    ) -> None:
        """Called by `open_tfds`, which describes the arguments."""
        self._folder, self._split, self._chosen = folder, split, chosen
        self._fps, self._length = fps, length

    def __len__(self) -> int:
        """Returns the number of videos."""
        return self._length

    def __getitem__(self, index: int) -> Video:
        """Returns a video; if the data set holds pictures, its file is made by `film`.

        Raises:
            UserError: It can't be read.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"video {index} of {self._length}")
        place = f"{os.path.dirname(self._folder)} {self._split}[{index}]"
        try:
            example = self._opened[index]
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{place} can't be read: {reason}") from error
        name = _text(example[self._chosen.name]) if self._chosen.name else place
        file = example[self._chosen.video]
        if not isinstance(file, bytes):
            file = film(name, list(file), self._fps)
        return Video(name, self._caption(example), file)

    def _caption(self, example: Mapping[str, Any]) -> str:
        if not self._chosen.caption:
            return ""
        value = example[self._chosen.caption]
        if not self._chosen.labels:
            return _text(value)
        return words(self._chosen.labels[value]) if value >= 0 else ""

    @functools.cached_property
    def _opened(self) -> Any:
        return _records(self._folder, self._split, self._chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}


def choose_features(
    name: str, features: Mapping[str, Any], video: str | None, caption: str | None
) -> Chosen:
    """Finds the features to take, by their types, as described in `open_tfds`.

    Raises:
        UserError: No feature or more than one fits, or the given one does not exist or fit.
    """
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    videos = [key for key, feature in features.items() if _holds_videos(feature)]
    chosen_video = _choose(name, "video", videos, video, videos)
    titles = [key for key in _CAPTIONS if key in texts][:1]
    names = [key for key in _NAMES if key in texts and key != caption][:1]
    spoken = titles or [key for key in texts if key not in names] or labels
    chosen_caption = ""
    if caption is not None or spoken:
        chosen_caption = _choose(name, "caption", texts + labels, caption, spoken)
    meaning = tuple(features[chosen_caption].names) if chosen_caption in labels else ()
    return Chosen(chosen_video, chosen_caption, names[0] if names else "", meaning)


def words(label: str) -> str:
    """Returns a label as words: `ApplyEyeMakeup` and `apply_eye_makeup` as "apply eye makeup"."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\W]+", " ", label)
    return " ".join(parts.lower().split())


def film(name: str, pictures: Sequence[bytes], fps: float | int) -> bytes:
    """Joins PNG or JPEG files into a video file, without decoding them.

    Args:
        name: What error messages call the video.
        pictures: The frames, all of one format and size. If there are none, the result is empty.
        fps: Frames a second.

    Raises:
        UserError: The pictures are in another format, or broken.
    """
    if not pictures:
        return b""
    kinds = [kind for magic, kind in _CODECS.items() if pictures[0].startswith(magic)]
    if not kinds:
        refuse_placeholder(f"the first picture of {name}", pictures[0])
        raise UserError(f"{name} holds pictures that are neither PNG nor JPEG")
    codec, pixels = kinds[0]
    rate = Fraction(fps).limit_denominator(1001)
    output = io.BytesIO()
    try:
        height, width = size_of_picture(pictures[0], f"the first picture of {name}")
        with av.open(output, "w", format="mov") as container:
            stream = cast(av.VideoStream, container.add_stream(codec, rate=rate))
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            for number, picture in enumerate(pictures):
                packet = av.Packet(picture)
                packet.stream, packet.is_keyframe = stream, True
                packet.time_base, packet.duration = 1 / rate, 1
                packet.pts = packet.dts = number
                container.mux(packet)
    except (FFmpegError, OSError) as error:
        raise UserError(f"{name} holds a broken picture: {error}") from error
    return output.getvalue()


def _prepared(name: str, root: epath.Path) -> str | None:
    """Returns the folder of a prepared data set, in the newest version if the name has none.

    The name is a data set's in `root`, or a path to its folder.
    """
    for place in (files.as_path(name),) if "://" in name else (root / name, files.as_path(name)):
        if (place / _INFO).exists():
            return os.fspath(files.utf8_path(place))
        versions = [
            tuple(map(int, child.name.split(".")))
            for child in (place.iterdir() if place.is_dir() else ())
            if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and (child / _INFO).exists()
        ]
        if versions:
            return os.fspath(files.utf8_path(place / ".".join(map(str, max(versions)))))
    return None


def _known(name: str, root: epath.Path) -> str:
    """Returns the folder that TFDS resolves a name to, with its default config and version."""
    try:
        builder = tfds.builder(name, data_dir=os.fspath(root))
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"{root} holds no TFDS data set {name}: check the name and TFDS_DATA_DIR, or prepare "
            f"it; TFDS's own data sets need TensorFlow ({_EXTRA})"
        ) from error
    except (AssertionError, ValueError) as error:
        raise UserError(f"TFDS can't open {name}: {str(error).splitlines()[0]}") from error
    if not builder.is_prepared():
        raise UserError(
            f"the TFDS data set {name} is not prepared in {root}: run "
            f"tfds build {name} --file_format=array_record --data_dir={root}"
        )
    return os.fspath(builder.data_path)


class _Stored(tfds.decode.Decoder):
    """Leaves a feature as it is stored."""

    def decode_example(self, serialized_example: Any) -> Any:
        return serialized_example

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


def _records(folder: str, split: str, chosen: Chosen) -> Any:
    """Returns the examples of a split, by number; nothing is read yet."""
    builder: Any = tfds.builder_from_directory(folder)
    decoders = {chosen.video: _Stored()}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{folder} has no split {split!r}: choose from {', '.join(builder.info.splits)}"
        ) from error


def _holds_videos(feature: Any) -> bool:
    """Returns whether a feature is bytes or, like `tfds.features.Video`, a sequence of pictures."""
    if isinstance(feature, tfds.features.Sequence):
        return isinstance(feature.feature, tfds.features.Image)
    is_bytes = isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.object_
    return is_bytes and not feature.shape and not isinstance(feature, tfds.features.Text)


def _choose(
    name: str, what: str, known: Sequence[str], given: str | None, found: Sequence[str]
) -> str:
    if given is not None:
        if given not in known:
            raise UserError(
                f"{given!r} is not a {what} feature of the TFDS data set {name}: choose from "
                f"{sorted(known)}"
            )
        return given
    if len(found) != 1:
        raise UserError(
            f"the TFDS data set {name} has {len(found)} features that can be its {what}: "
            f"{sorted(found)}"
        )
    return found[0]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
