"""Compares the amount of motion in samples and in real clips."""

import itertools
import warnings
from collections import deque

import numpy as np
from jaxtyping import Float, Float64, UInt8

_REAL_CLIPS = 256


def motion(videos: UInt8[np.ndarray, "b t h w 3"]) -> Float64[np.ndarray, " b"]:
    """Returns the mean absolute difference of consecutive frames of each clip, 0 to 1.

    It is 0 for a clip of one frame.
    """
    found = np.zeros(len(videos))
    for clip, video in enumerate(videos):
        # One pair of frames at a time, since differences of 8-bit numbers need more memory.
        pairs = itertools.pairwise(video)
        steps = [np.abs(np.subtract(b, a, dtype=np.int16)).mean() for a, b in pairs]
        found[clip] = np.mean(steps) / 255 if steps else 0.0
    return found


class MotionMonitor:
    """Compares the motion in samples with the motion in real clips.

    Fine-tuning is reported to make motion collapse while the loss keeps falling.
    """

    def __init__(self, threshold: float = 0.25, patience: int = 3) -> None:
        """Makes a monitor that has seen no clips.

        Args:
            threshold: Ratio of motion in samples to motion in real clips that is still enough.
            patience: How many times in a row the ratio must be too low for a warning.
        """
        self._threshold = threshold
        self._patience = patience
        self._real: deque[float] = deque(maxlen=_REAL_CLIPS)
        self._low = 0

    def observe(
        self,
        videos: UInt8[np.ndarray, "b t h w 3"],
        weight: Float[np.ndarray, " b"] | None = None,
    ) -> None:
        """Adds real clips; the latest 256 count. One batch before each sampling is enough.

        Args:
            videos: The clips.
            weight: 0 for clips that could not be read.
        """
        read = videos if weight is None else videos[weight > 0]
        self._real.extend(motion(read))

    def check(self, samples: UInt8[np.ndarray, "n t h w 3"]) -> dict[str, float]:
        """Returns `motion/samples` and, after real clips, `motion/real` and `motion/ratio`.

        Warns when the ratio has been too low `patience` times in a row, and again after every
        further `patience` times.
        """
        found = {"motion/samples": float(motion(samples).mean())}
        if not self._real:
            return found
        found["motion/real"] = real = float(np.mean(self._real))
        if not real:  # still pictures tell nothing
            return found
        found["motion/ratio"] = ratio = found["motion/samples"] / real
        self._low = self._low + 1 if ratio < self._threshold else 0
        if self._low and self._low % self._patience == 0:
            warnings.warn(
                f"samples move {ratio:.2f} times as much as real clips, below {self._threshold:g} "
                f"for {self._low} samplings in a row: motion may be collapsing",
                stacklevel=2,
            )
        return found
