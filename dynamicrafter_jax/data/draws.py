"""Everything random in a training sample, as a function of the seed and the sample's number.

A sample is therefore the same in every batch, process or run that makes it. The rules follow the
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
"""What a model's `fs` condition can mean: the clip's frames a second, or its stride."""

_SHUFFLE_STEPS = 12  # enough for orders of few videos to be equally likely


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut out of videos.

    Attributes:
        height: Height of frames, in pixels.
        width: Width of frames, in pixels.
        num_frames: Frames in a clip.
        min_stride: Smallest step from one frame of a clip to the next, in source frames.
        max_stride: Largest such step.
        fs: One of `FS_MEANINGS`.
        condition_dropout: p, at most 1/3: a share p of samples loses its prompt, another p its
            image, and another p both.
        random_frame: Whether the conditioning frame is a random one of the clip; otherwise it is
            always the first.
        context_length: Token ids in a prompt.
        frames: How many frames of a clip are read: the conditioning frame, both ends if they are
            given, and random others. None reads all.
        ends_share: Share of samples in which both ends are given.

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
                "give whole numbers from 1, the second at least as large as the first"
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
                f"data.frames is {self.frames}: give {given} to {self.num_frames} (at least the "
                "conditioning frames, at most the whole clip), or None for all"
            )

    @property
    def num_read(self) -> int:
        """How many frames of a clip are read."""
        return self.num_frames if self.frames is None else self.frames

    def fs_condition(self, fps: int | float, stride: int) -> int | float:
        """Returns the model's `fs` condition for a clip with this stride, from a video at `fps`."""
        return fps // stride if self.fs == "fps" else stride

    @classmethod
    def from_config(cls, config: ConfigDict) -> "ClipSettings":
        """Reads the settings from a model's config; its `train` section says if ends are given.

        Raises:
            UserError: A number is out of range, or `data.frames` leaves out frames of clips whose
                frames have no image tokens of their own.
        """
        length = config.projector.video_length
        if config.data.frames is not None and config.sampling.num_frames != length:
            raise UserError(
                f"data.frames is {config.data.frames}, but clips have sampling.num_frames = "
                f"{config.sampling.num_frames} frames: set data.frames to None, since frames can "
                f"be left out only of clips with projector.video_length = {length} frames, whose "
                "image tokens tell the frames apart"
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
    """The random choices made for a sample.

    Attributes:
        stride: Source frames from one frame of the clip to the next.
        start: Number of the clip's first frame in the video.
        frame: Number of the conditioning frame in the clip.
        keep_text: Whether the prompt stays; otherwise it is emptied.
        keep_image: Whether the image condition stays; otherwise it is zeroed.
        ends: Whether both ends are given; never if `ClipSettings.ends_share` is 0.
        places: Numbers in the clip of the frames that are read, in order.
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
        """Numbers in the video of the frames that are read."""
        return tuple(self.start + self.stride * place for place in self.places)

    @property
    def frame_read(self) -> int:
        """Position of the conditioning frame among the frames that are read."""
        return self.places.index(self.frame)


def video_of(seed: int, index: int, num_videos: int) -> int:
    """Returns which video a sample is from; each epoch has every video once, in its own order.

    Args:
        seed: Seed of the run, from 0.
        index: The sample's number, from 0.
        num_videos: How many videos there are.
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
    """Hashes numbers to 64 bits that are the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def check_length(name: str, num_source_frames: int, settings: ClipSettings) -> None:
    """Checks that a clip can be cut out of a video.

    Raises:
        UserError: The video is too short for a clip even at stride 1.
    """
    if num_source_frames < settings.num_frames:
        raise UserError(
            f"{name} has {num_source_frames} frames, but {settings.num_frames} are needed"
        )


def draw_clip(seed: int, index: int, num_source_frames: int, settings: ClipSettings) -> Draw:
    """Draws a sample: which frames of its video, and which conditions it keeps.

    Args:
        seed: Seed of the run, from 0.
        index: The sample's number, from 0.
        num_source_frames: Frames of its video, which must pass `check_length`. If the clip would
            be longer than the video at the stride drawn, the stride is lowered to
            num_source_frames // num_frames.
        settings: The ranges to draw from.
    """
    # Raw random words depend on nothing but the key in every version of NumPy, while its
    # distributions may change. One block of the generator is four words.
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
    """Chooses the frames of a clip that are read: the `given` ones, and random others."""
    places = range(settings.num_frames)
    if settings.frames is None:
        return tuple(places)
    others = sorted(set(places) - given, key=lambda place: shares[place])
    return tuple(sorted(given | set(others[: settings.frames - len(given)])))


def _shares(words: UInt64[np.ndarray, " n"]) -> list[float]:
    """Converts random words to numbers from 0 to 1."""
    return ((words >> np.uint64(11)) * 2.0**-53).tolist()
