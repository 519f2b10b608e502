"""Protocols: small files that pin down everything a number of an evaluation depends on.

A protocol is JSON. Sections and keys are those of the classes below; unknown keys are refused, so
that a misspelt one can't be without effect.
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
"""Of the format: what a key means does not change within one."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Which videos there are to choose from.

    Attributes:
        set: "ucf101" and "msrvtt" in their published layouts; "folder" is any folder of videos.
        split: "all" of them, or one of the set: "train1" to "test3" of UCF-101; "train",
            "validate" and "test" of MSR-VTT.
        prompt: "class", its name in words; "first_caption"; "caption", the text beside the video;
            or "none".
    """

    set: Literal["ucf101", "msrvtt", "folder"]
    split: str
    prompt: Literal["class", "first_caption", "caption", "none"]


@dataclasses.dataclass(frozen=True)
class Clips:
    """Which of them are compared.

    Attributes:
        videos: How many; None for all.
        rule: "hash": the first by SHA-256 of the seed and the name, so that the order of files
            and the versions of packages decide nothing. Where a number is given, videos that are
            too short are passed over.
        seed: For the rule, and for starts that are drawn.
        list: A file of clips, as a run writes it, in place of the rule; relative to the protocol.
        sha256: What the list must hash to; None for any.
    """

    videos: int | None
    rule: Literal["hash"]
    seed: int
    list: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.videos is not None and self.videos < 2:
            raise UserError(f"clips.videos is {self.videos}: a distance needs 2 or more")


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which frames of a reference video are its clip. Generated videos are taken from their start.

    Attributes:
        count: Frames of a clip.
        stride: Frames of the file from one to the next.
        start: "first", the video's first frame; "random", drawn by seed and name.
    """

    count: int
    stride: int
    start: Literal["first", "random"]

    def __post_init__(self) -> None:
        if self.count < 1 or self.stride < 1:
            raise UserError(f"frames are {self.count} at stride {self.stride}: 1 or more of each")

    @property
    def span(self) -> int:
        """Frames of the file from the first of a clip to its last."""
        return (self.count - 1) * self.stride + 1

    def generated(self) -> "Frames":
        """Returns which frames of a generated video are its clip."""
        return Frames(self.count, 1, "first")


@dataclasses.dataclass(frozen=True)
class Picture:
    """How frames get their size, generated ones too.

    Attributes:
        height: In pixels.
        width: In pixels.
        resize: "bicubic", widened when shrinking, until the picture covers height x width.
        crop: "centre": what is beyond is cut off, evenly.
    """

    height: int
    width: int
    resize: Literal["bicubic"]
    crop: Literal["centre"]


@dataclasses.dataclass(frozen=True)
class Fs:
    """What the model is told of the clip's speed.

    Attributes:
        meaning: "stride" for the 256 model; "fps", frames of the clip a second, for the others.
        value: The same for all clips; None for what is true of each.
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
        i3d_sha256: Of the file of weights; None for any.
        dreamsim: Which of its networks.
        dreamsim_sha256: Of its weights, put together as reports say; None for any.
        clip_sha256: Of the file of CLIP's weights; None for any.
        resamples: Of confidence intervals.
        level: Of confidence intervals.
        seed: Of confidence intervals.
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
    """All that decides the numbers, beside the videos and the model.

    Attributes:
        name: What reports call it.
        version: Of the protocol itself: a number that is higher with each change of it.
        format: `VERSION`.
        about: What it is, in a sentence.
        pairing: "names": each generated video has a reference of its name, whose clip's first
            frame is the image that it was made from. "none": the sets are not of the same clips.
        clips: Which are compared.
        frames: Which of theirs.
        picture: Their size.
        measures: How they are measured.
        data: Where they come from; None for a folder given by flag.
        fs: What the model is told; None where it does not generate.
        sampling: How it generates; None likewise.
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
        """Returns it as the file has it."""
        return dataclasses.asdict(self)

    @property
    def sha256(self) -> str:
        """Hash of all that it says; not of where a list lies, but of what it must hash to."""
        said = self.as_json()
        del said["clips"]["list"]
        return fingerprint(said)

    def with_videos(self, videos: int | None) -> "Protocol":
        """Returns the protocol for another number of videos, if one is given.

        Raises:
            UserError: If its clips are pinned down, or the number is under 2.
        """
        if videos is None or videos == self.clips.videos:
            return self
        if self.clips.list is not None or self.clips.sha256 is not None:
            raise UserError(
                f"{videos} videos can't be asked of {self.name}, whose list of clips is pinned "
                "down: give another protocol"
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
        name_or_path: The name of one that ships, or a `.json` file.

    Raises:
        UserError: If there is none, or it says too much, too little or nonsense.
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
        raise UserError(f"{path} is no protocol: {error}") from None
    if protocol.clips.list is None:
        return protocol
    place = os.fspath(path.parent / protocol.clips.list)
    return dataclasses.replace(protocol, clips=dataclasses.replace(protocol.clips, list=place))


def parse_protocol(said: Any) -> Protocol:
    """Returns the protocol that a JSON object says.

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
    return settings_of(cls, name, ConfigDict(said))  # which refuses unknown keys


def _check_keys(what: str, known: set[str], said: dict[str, Any]) -> None:
    if unknown := sorted(said.keys() - known):
        raise UserError(f"{what} has the unknown key {', '.join(unknown)}")
    if missing := sorted(known - said.keys()):
        raise UserError(f"{what} lacks {', '.join(missing)}")


def _shipped() -> epath.Path:
    """The folder of protocols that ship."""
    return epath.Path(str(resources.files("dynamicrafter_jax") / "evaluation" / "protocols"))
