"""All that is random in a training sample, as a function of the seed and the sample's number.

So a sample is the same in whatever batch, process or run it is made. The rules are those of the
release's training.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError

FS_MEANINGS = ("fps", "stride")
"""What a model's `fs` condition can be: frames a second of the clip, or frames between frames."""

_SHUFFLE_STEPS = 12  # enough for orders of few videos to be equally likely


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut out of videos.

    Attributes:
        height: Of frames, in pixels.
        width: Of frames, in pixels.
        num_frames: Frames of a clip.
        min_stride: The least source frames from one frame of a clip to the next.
        max_stride: The most.
        fs: One of `FS_MEANINGS`.
        condition_dropout: p, at most 1/3: a share p of samples loses its prompt, another p its
            image, and another p both.
        random_frame: Whether the conditioning frame is any of the clip, or always the first.
        context_length: Token ids of a prompt.
        frames: Frames of a clip that are read: the conditioning frame, both ends where those are
            given, and random others. None reads all.
        ends_share: Of samples that both ends are given of.

    Raises:
        UserError: A number is out of range.
    """

    height: int
    width: int
    num_frames: int
    min_stride: int
    max_stride: int
    fs: str
    condition_dropout: float
    random_frame: bool
    context_length: int
    frames: int | None = None
    ends_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_stride <= self.max_stride:
            raise UserError(
                f"data.min_stride is {self.min_stride} and data.max_stride {self.max_stride}: "
                "give whole numbers from 1, the second no smaller"
            )
        if not 0 <= self.condition_dropout <= 1 / 3:
            raise UserError(
                f"data.condition_dropout is {self.condition_dropout}: give 0 to 1/3, "
                "since three times as many samples lose a condition"
            )
        if self.fs not in FS_MEANINGS:
            raise UserError(f"data.fs is {self.fs!r}: choose {' or '.join(FS_MEANINGS)}")
        for name in ("height", "width", "num_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling.{name} is {getattr(self, name)}: give 1 or more")
        if not 0 <= self.ends_share <= 1:
            raise UserError(f"train.ends_share is {self.ends_share}: give 0 to 1")
        given = 1 + (self.ends_share > 0) + (self.ends_share > 0 and self.random_frame)
        if self.frames is not None and not given <= self.frames <= self.num_frames:
            raise UserError(
                f"data.frames is {self.frames}: give {given} to {self.num_frames}, for those "
                "that a clip is given by and no more than it has; or None for all"
            )

    @property
    def num_read(self) -> int:
        """Frames of a clip that are read."""
        return self.num_frames if self.frames is None else self.frames

    def fs_condition(self, fps: int | float, stride: int) -> int | float:
        """Returns what a model is told of a clip of this stride, from a video of `fps`."""
        return fps // stride if self.fs == "fps" else stride

    @classmethod
    def from_config(cls, config: ConfigDict) -> "ClipSettings":
        """Takes the settings from a model's config, of which `train` says if ends are given.

        Raises:
            UserError: A number is out of range, or few frames are read of clips whose frames have
                no image tokens of their own.
        """
        length = config.projector.video_length
        if config.data.frames is not None and config.sampling.num_frames != length:
            raise UserError(
                f"data.frames is {config.data.frames}, and clips have sampling.num_frames = "
                f"{config.sampling.num_frames} frames: only of those with "
                f"projector.video_length = {length} some can be read, since by its image tokens "
                "a frame knows its place"
            )
        shares = {"ends": 1.0, "either": float(config.train.ends_share)}
        return cls(
            height=config.sampling.height,
            width=config.sampling.width,
            num_frames=config.sampling.num_frames,
            min_stride=config.data.min_stride,
            max_stride=config.data.max_stride,
            fs=config.data.fs,
            condition_dropout=float(config.data.condition_dropout),
            random_frame=config.data.random_frame,
            context_length=config.text_encoder.context_length,
            frames=config.data.frames,
            ends_share=shares.get(config.train.concat, 0.0),
        )


class Draw(NamedTuple):
    """What was drawn for a sample.

    Attributes:
        stride: Source frames from one frame of the clip to the next.
        start: The first, as its number in the video.
        frame: The conditioning frame, as its number in the clip.
        keep_text: Whether the prompt stays; else it is emptied.
        keep_image: Whether the image condition stays; else it is zeroed.
        ends: Whether both ends are given, where some clips are given so.
        places: The frames of the clip that are read, as their numbers in it, in order.
    """

    stride: int
    start: int
    frame: int
    keep_text: bool
    keep_image: bool
    ends: bool
    places: tuple[int, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames that are read, as their numbers in the video."""
        return tuple(self.start + self.stride * place for place in self.places)

    @property
    def frame_read(self) -> int:
        """The conditioning frame, as its number among those that are read."""
        return self.places.index(self.frame)


def video_of(seed: int, index: int, num_videos: int) -> int:
    """Returns which video a sample is from; every epoch has each once, in an order of its own.

    Args:
        seed: Of the run, from 0.
        index: The sample's number, from 0.
        num_videos: How many there are.
    """
    epoch, place = divmod(index, num_videos)
    half = max(1, ((num_videos - 1).bit_length() + 1) // 2)
    # A Feistel network permutes all numbers of 2 * half bits. Where it leads out of the range, it
    # is followed on until it comes back (cycle walking, Black and Rogaway, CT-RSA 2002).
    while True:
        left, right = divmod(place, 1 << half)
        for step in range(_SHUFFLE_STEPS):
            left, right = right, left ^ _scramble(seed, epoch, step, right) % (1 << half)
        place = left << half | right
        if place < num_videos:
            return place


def _scramble(*numbers: int) -> int:
    """Returns 64 bits that any other numbers make unrelated ones of, on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def check_length(name: str, num_source_frames: int, settings: ClipSettings) -> None:
    """Makes sure that a clip can be cut out of a video.

    Raises:
        UserError: The video is too short for one even at stride 1.
    """
    if num_source_frames < settings.num_frames:
        raise UserError(f"{name} has {num_source_frames} frames, {settings.num_frames} are needed")


def draw_clip(seed: int, index: int, num_source_frames: int, settings: ClipSettings) -> Draw:
    """Draws a sample: which frames of its video, and which conditions it keeps.

    Args:
        seed: Of the run, from 0.
        index: The sample's number, from 0.
        num_source_frames: Frames of its video, for which `check_length` holds. If the clip is
            longer at the stride drawn, the stride is lowered to num_source_frames // num_frames.
        settings: The ranges.
    """
    # Random words depend on nothing but the key, in every version of NumPy: its distributions may
    # change. One block of the generator is four words.
    words = np.random.Philox(key=np.array([seed, index], np.uint64))
    for_stride, for_start, for_frame, r = _shares(words.random_raw(4))
    for_ends, *for_places = _shares(words.random_raw(1 + settings.num_frames))
    stride = settings.min_stride + int(for_stride * (settings.max_stride - settings.min_stride + 1))
    if num_source_frames < stride * (settings.num_frames - 1) + 1:
        stride = max(1, num_source_frames // settings.num_frames)
    room = num_source_frames - (stride * (settings.num_frames - 1) + 1)
    p = settings.condition_dropout
    frame = int(for_frame * settings.num_frames) if settings.random_frame else 0
    ends = for_ends < settings.ends_share
    return Draw(
        stride=stride,
        start=int(for_start * (room + 1)),
        frame=frame,
        keep_text=r >= 2 * p,
        keep_image=not p <= r < 3 * p,
        ends=ends,
        places=_places(
            for_places, {frame, 0, settings.num_frames - 1} if ends else {frame}, settings
        ),
    )


def _places(shares: Sequence[float], given: set[int], settings: ClipSettings) -> tuple[int, ...]:
    """Chooses the frames of a clip that are read: those that it is given by, and others."""
    places = range(settings.num_frames)
    if settings.frames is None:
        return tuple(places)
    others = sorted(set(places) - given, key=lambda place: shares[place])
    return tuple(sorted(given | set(others[: settings.frames - len(given)])))


def _shares(words: UInt64[np.ndarray, " n"]) -> list[float]:
    """Returns numbers from 0 to 1 of random words."""
    return ((words >> np.uint64(11)) * 2.0**-53).tolist()
