"""Protocols: small files that pin down everything that the results of an evaluation depend on.

A protocol is JSON. Sections and keys are those of the classes below; unknown keys are refused, so a
misspelt one can't go unnoticed.
"""

import dataclasses
import os
from importlib import resources
from typing import Any, Literal, TypeVar

from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, tables
from dynamicrafter_jax.sampling.bulk.manifest import fingerprint

T = TypeVar("T")

VERSION = 1
"""Version of the format; within a version, the meaning of a key does not change."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The videos to choose from.

    Attributes:
        set: "ucf101" and "msrvtt" in their published layouts; "folder" for any folder of videos.
        split: "all", or one of the set's splits: "train1" to "train3" and "test1" to "test3" of
            UCF-101; "train", "validate" and "test" of MSR-VTT.
        prompt: "class", the name of the class in words; "first_caption"; "caption", the text file
            next to the video; or "none".
    """

    set: Literal["ucf101", "msrvtt", "folder"]
    split: str
    prompt: Literal["class", "first_caption", "caption", "none"]


@dataclasses.dataclass(frozen=True)
class Clips:
    """The videos to compare.

    Attributes:
        videos: How many; None for all.
        rule: "hash": the first by SHA-256 of the seed and the name, which does not depend on the
            order of files or on versions of packages. If `videos` is given, videos that are too
            short are skipped.
        seed: Seed of the rule and of random starts.
        list: A file of clips, as a run writes it, used instead of the rule; relative to the
            protocol.
        sha256: The hash that the list must have; None for any.
    """

    videos: int | None
    rule: Literal["hash"]
    seed: int
    list: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.videos is not None and self.videos < 2:
            raise UserError(f"clips.videos is {self.videos}: give 2 or more, for a distance")


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of a reference video that form its clip. Generated clips start at frame 0.

    Attributes:
        count: Frames in a clip.
        stride: Step from one frame of the clip to the next, in frames of the file.
        start: "first", the video's first frame; "random", drawn by seed and name.
    """

    count: int
    stride: int
    start: Literal["first", "random"]

    def __post_init__(self) -> None:
        if self.count < 1 or self.stride < 1:
            raise UserError(
                f"frames.count is {self.count} and frames.stride {self.stride}: give 1 or more"
            )

    @property
    def span(self) -> int:
        """Frames of the file from the first frame of a clip to its last."""
        return (self.count - 1) * self.stride + 1

    def generated(self) -> "Frames":
        """Returns which frames of a generated video form its clip."""
        return Frames(self.count, 1, "first")


@dataclasses.dataclass(frozen=True)
class Picture:
    """How frames are resized, including generated ones.

    Attributes:
        height: Height, in pixels.
        width: Width, in pixels.
        resize: "bicubic", widened when shrinking; the resized picture covers height x width.
        crop: "centre": the excess is cut off evenly on both sides.
    """

    height: int
    width: int
    resize: Literal["bicubic"]
    crop: Literal["centre"]


@dataclasses.dataclass(frozen=True)
class Fs:
    """The model's condition on the clip's speed.

    Attributes:
        meaning: "stride" for the 256 model; "fps", the clip's frames a second, for the others.
        value: A value for all clips; None for each clip's true value.
    """

    meaning: Literal["stride", "fps"]
    value: float | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How clips are generated; see `sampling.SamplingSettings`."""

    steps: int
    eta: float
    guidance_scale: float
    image_guidance_scale: float | None
    guidance_rescale: float
    spacing: str
    negative_prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Measures:
    """How clips are measured.

    Attributes:
        half_pixel_centers: How frames are resized for I3D; see `metrics.i3d.preprocess`.
        i3d_sha256: Hash of the file of I3D's weights; None for any.
        dreamsim: Which of DreamSim's networks.
        dreamsim_sha256: Hash of DreamSim's weights, combined as in reports; None for any.
        clip_sha256: Hash of the file of CLIP's weights; None for any.
        resamples: Number of bootstrap resamples for confidence intervals.
        level: Level of confidence intervals, such as 0.95.
        seed: Seed of the resamples.
    """

    half_pixel_centers: bool
    i3d_sha256: str | None
    dreamsim: str
    dreamsim_sha256: str | None
    clip_sha256: str | None
    resamples: int
    level: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that the results depend on, apart from the videos and the model.

    Attributes:
        name: What reports call it.
        version: Version of the protocol itself; it increases with each change.
        format: `VERSION`.
        about: What it is, in a sentence.
        pairing: "names": each generated video has a reference of the same name, whose clip's first
            frame is the image that it was made from. "none": the sets are not of the same clips.
        clips: The videos to compare.
        frames: Their frames.
        picture: The size of frames.
        measures: How clips are measured.
        data: Where videos come from; None for a folder given by flag.
        fs: The model's condition on speed; None if no clips are generated.
        sampling: How clips are generated; None if no clips are generated.
    """

    name: str
    version: int
    format: int
    about: str
    pairing: Literal["names", "none"]
    clips: Clips
    frames: Frames
    picture: Picture
    measures: Measures
    data: Data | None
    fs: Fs | None
    sampling: Sampling | None

    def as_json(self) -> dict[str, Any]:
        """Returns the contents of its file."""
        return dataclasses.asdict(self)

    @property
    def sha256(self) -> str:
        """Hash of its contents, except for the path of a list, whose own hash counts instead."""
        said = self.as_json()
        del said["clips"]["list"]
        return fingerprint(said)

    def with_videos(self, videos: int | None) -> "Protocol":
        """Returns the protocol for another number of videos, if one is given.

        Raises:
            UserError: Its clips are pinned down, or the number is under 2.
        """
        if videos is None or videos == self.clips.videos:
            return self
        if self.clips.list is not None or self.clips.sha256 is not None:
            raise UserError(
                f"{self.name} can't be used with {videos} videos, since its list of clips is "
                "pinned down: give another protocol"
            )
        return dataclasses.replace(self, clips=dataclasses.replace(self.clips, videos=videos))


_SECTIONS: dict[str, type] = {
    "clips": Clips,
    "frames": Frames,
    "picture": Picture,
    "measures": Measures,
    "data": Data,
    "fs": Fs,
    "sampling": Sampling,
}
_OPTIONAL = ("data", "fs", "sampling")
_PLAIN = {"name": str, "version": int, "format": int, "about": str, "pairing": str}


def load_protocol(name_or_path: epath.PathLike) -> Protocol:
    """Reads a protocol.

    Args:
        name_or_path: The name of a protocol in this package, or a `.json` file.

    Raises:
        UserError: There is no such protocol, or it has unknown, missing or wrong keys.
    """
    path = files.as_path(name_or_path)
    if path.suffix != ".json":
        path = _shipped() / f"{path.name}.json"
        if not path.exists():
            names = sorted(file.stem for file in _shipped().glob("*.json"))
            raise UserError(
                f"no protocol {os.fspath(name_or_path)!r}: give a .json file, or one of "
                f"{', '.join(names)}"
            )
    try:
        said = tables.parse_json(tables.decode(files.read_bytes(path)))
        protocol = parse_protocol(said)
    except UserError as error:
        raise UserError(f"{path} is not a protocol: {error}") from None
    if protocol.clips.list is None:
        return protocol
    place = os.fspath(path.parent / protocol.clips.list)
    return dataclasses.replace(protocol, clips=dataclasses.replace(protocol.clips, list=place))


def parse_protocol(said: Any) -> Protocol:
    """Returns the protocol in a JSON object.

    Raises:
        UserError: See `load_protocol`.
    """
    if not isinstance(said, dict):
        raise UserError("it must be a JSON object")
    _check_keys("the file", {field.name for field in dataclasses.fields(Protocol)}, said)
    for key, kind in _PLAIN.items():
        if not isinstance(said[key], kind) or isinstance(said[key], bool):
            raise UserError(f"{key} is {said[key]!r}")
    if said["format"] != VERSION:
        raise UserError(f"its format is {said['format']}, but this version reads {VERSION}")
    if said["pairing"] not in ("names", "none"):
        raise UserError(f"pairing is {said['pairing']!r}: choose from names, none")
    read: dict[str, Any] = {name: said[name] for name in _PLAIN}
    read |= {name: _section(name, cls, said[name]) for name, cls in _SECTIONS.items()}
    return Protocol(**read)


def _section(name: str, cls: type[T], said: Any) -> T | None:
    if said is None and name in _OPTIONAL:
        return None
    if not isinstance(said, dict):
        raise UserError(f"{name} must be a JSON object")
    assert dataclasses.is_dataclass(cls)
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if missing := sorted(needed - said.keys()):
        raise UserError(f"{name} lacks {', '.join(missing)}")
    return settings_of(cls, name, ConfigDict(said))  # refuses unknown keys


def _check_keys(what: str, known: set[str], said: dict[str, Any]) -> None:
    if unknown := sorted(said.keys() - known):
        raise UserError(f"{what} has the unknown key {', '.join(unknown)}")
    if missing := sorted(known - said.keys()):
        raise UserError(f"{what} lacks {', '.join(missing)}")


def _shipped() -> epath.Path:
    """Returns the folder of the protocols in this package."""
    return epath.Path(str(resources.files("dynamicrafter_jax") / "evaluation" / "protocols"))
