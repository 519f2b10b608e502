"""A progress bar over compilation and steps that also keeps time."""

import sys
import time
from statistics import median

from tqdm import tqdm


class ProgressBar:
    """Shows `sampler.Progress` updates on stderr, and remembers how long each solver step took.

    Attributes:
        step_seconds: Wall-clock seconds of each solver step seen, excluding compilation.
    """

    def __init__(self) -> None:
        """Starts the clock."""
        self.step_seconds: list[float] = []
        self._bar: tqdm | None = None
        self._stage = ""
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `sampler.Progress`."""
        now = time.perf_counter()
        if stage == "denoise":
            self.step_seconds.append(now - self._last)
        self._last = now
        if self._bar is None or self._stage != stage:
            self.close()
            self._bar = tqdm(total=total, desc=stage, file=sys.stderr, leave=False, disable=None)
            self._stage = stage
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    @property
    def seconds_per_step(self) -> float:
        """Median seconds of a solver step."""
        return median(self.step_seconds) if self.step_seconds else float("nan")

    def close(self) -> None:
        """Clears the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "ProgressBar":
        """Returns the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clears the bar."""
        self.close()
