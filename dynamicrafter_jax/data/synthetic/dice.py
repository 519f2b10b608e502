"""Random numbers from a key, the same on every machine and in every version of NumPy."""

import functools
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

T = TypeVar("T")


class Dice:
    """An endless sequence of random numbers that depends on a key alone."""

    def __init__(self, number: int, topic: str) -> None:
        """Prepares the numbers for one topic of one clip; those for others are unrelated.

        Args:
            number: Number of the clip, 0 to 2**64 - 1.
            topic: Any text.
        """
        # Raw random words depend on nothing but the key; NumPy's distributions may change.
        self._words = np.random.Philox(key=np.array([number, _word(topic)], np.uint64))

    def array(self, *shape: int) -> Float64[np.ndarray, "..."]:
        """Draws numbers uniformly from 0 to 1."""
        words = self._words.random_raw(int(np.prod(shape, dtype=int)))
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def uniform(self, low: float | int, high: float | int) -> float:
        """Draws a number uniformly from `low` to `high`."""
        return low + (high - low) * float(self.array(1)[0])

    def chance(self, probability: float | int) -> bool:
        """Returns True with the given probability."""
        return self.uniform(0, 1) < probability

    def choose(self, choices: Sequence[T]) -> T:
        """Draws one of the choices, all equally likely."""
        return choices[int(self.uniform(0, 1) * len(choices))]


@functools.lru_cache
def _word(topic: str) -> int:
    return int.from_bytes(hashlib.blake2b(topic.encode(), digest_size=8).digest(), "little")
