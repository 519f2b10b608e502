"""Judges videos of drawn clips: what moves, how sharp they are, how near to the true clip."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from drawn_clips import Drawn, Videos, feature_distance, psnr, simple_features
from tracking import Change, made, shows

from dynamicrafter_jax.data.synthetic import MOTIONS, Motion

OPPOSITES: tuple[tuple[Motion, Motion], ...] = (
    ("left", "right"),
    ("up", "down"),
    ("clockwise", "anticlockwise"),
    ("grow", "shrink"),
    ("pan_left", "pan_right"),
    ("pan_up", "pan_down"),
    ("zoom_in", "zoom_out"),
)

NOTHING_NEW: tuple[Motion, ...] = ("clockwise", "anticlockwise", "grow", "zoom_in")
"""Motions after which nothing is in view that the first frame does not show, but for slivers."""

_LAST = 4  # frames whose sharpness is measured


class Motions(NamedTuple):
    """How many clips show the named motions.

    Attributes:
        overall: Share of clips that are right.
        single: Share of the clips with one motion that are right.
        named: Share of named motions that go the right way, far enough, whatever else moves.
        by_motion: For each motion, the share of clips naming it that are right; "still" is for
            clips that name none.
        named_by_motion: For each motion, how often it goes the right way, far enough, when named.
        speed: Rank correlation between the speed of named motions and what it should be.
        named_speed: The same, of those that go the right way, far enough.
    """

    overall: float
    single: float
    named: float
    by_motion: dict[str, float]
    named_by_motion: dict[str, float]
    speed: float
    named_speed: float


def judge(clips: Sequence[Drawn], changes: Sequence[Change], share: float) -> Motions:
    """Compares what changed in clips with what their captions name.

    Args:
        clips: The clips; at least one has one motion.
        changes: What changed in each.
        share: Of its way that a motion has to go to count.
    """
    right: dict[str, list[bool]] = {name: [] for name in ("still", *MOTIONS)}
    named: dict[str, list[bool]] = {name: [] for name in MOTIONS}
    every, single, wanted, found = [], [], [], []
    for clip, change in zip(clips, changes, strict=True):
        scene = clip.scene
        seconds = seconds_of(clip)
        is_right = shows(change, scene.motions, seconds, share=share)
        every.append(is_right)
        if len(scene.motions) == 1:
            single.append(is_right)
        for name in scene.motions or ("still",):
            right[name].append(is_right)
        for motion in scene.motions:
            wanted.append(seconds)
            found.append(made(change, motion))
            named[motion].append(found[-1] >= share * seconds)
    made_far = np.asarray(found) >= share * np.asarray(wanted)
    return Motions(
        float(np.mean(every)),
        float(np.mean(single)),
        float(np.mean([value for values in named.values() for value in values])),
        {name: float(np.mean(values)) for name, values in right.items() if values},
        {name: float(np.mean(values)) for name, values in named.items() if values},
        _rank_correlation(wanted, found),
        _rank_correlation(*np.compress(made_far, [wanted, found], axis=1)),
    )


def _rank_correlation(wanted: Sequence[float], found: Sequence[float]) -> float:
    return float(np.asarray(scipy.stats.spearmanr(wanted, found))[0])


def seconds_of(clip: Drawn) -> float:
    """Returns how long a clip lasts at its frames a second, from the first frame to the last."""
    return (len(clip.video) - 1) / clip.scene.fps


def videos_of(clips: Sequence[Drawn]) -> Videos:
    """Returns the true videos of clips."""
    return np.stack([clip.video for clip in clips])


def distance(real: Videos, other: Videos) -> float:
    """Returns the Fréchet distance of simple features, scaled to unit spread over real clips."""
    return feature_distance(simple_features(real), simple_features(other))


def first_frame_db(clips: Sequence[Drawn], videos: Videos) -> float:
    """Returns the mean PSNR of first frames against their images, in dB."""
    return float(psnr(videos[:, 0], videos_of(clips)[:, 0]).mean())


def last_frame_db(clips: Sequence[Drawn], videos: Videos) -> float:
    """Returns the mean PSNR of last frames, in dB, over clips with motions of `NOTHING_NEW` alone.

    Where something new comes into view, a model has to invent it, and may well.
    """
    rows = [i for i, clip in enumerate(clips) if _nothing_new(clip.scene.motions)]
    return float(psnr(videos[rows, -1], videos_of(clips)[rows, -1]).mean())


def sharpness(real: Videos, other: Videos) -> float:
    """Returns the mean gradient of the last frames, relative to the real videos'."""
    return _gradient(other[:, -_LAST:]) / _gradient(real[:, -_LAST:])


def crossfade(videos: Videos) -> Videos:
    """Returns videos that fade from the first to the last frame."""
    t = videos.shape[1]
    share = (np.arange(t) / (t - 1))[None, :, None, None, None]
    ends = videos[:, [0, -1]].astype(np.float64)
    return np.round(ends[:, :1] * (1 - share) + ends[:, 1:] * share).astype(np.uint8)


def _nothing_new(motions: Sequence[Motion]) -> bool:
    return bool(motions) and set(motions) <= set(NOTHING_NEW)


def _gradient(videos: Videos) -> float:
    """Returns the mean length of the brightness's gradient."""
    brightness = videos.astype(np.float64).mean(-1)
    down = np.diff(brightness, axis=-2)[..., :-1]
    right = np.diff(brightness, axis=-1)[..., :-1, :]
    return float(np.hypot(down, right).mean())
