"""Reports the progress of a generation in words, and stops it on request."""

import threading
import time
from collections.abc import Callable
from statistics import median

Show = Callable[[float, str], None]
"""Takes the share that is done, 0 to 1, and a short description."""


class Stopped(Exception):
    """The user has stopped the generation."""


class Watch:
    """A `sampler.Progress` that shows steps and the time left, and ends a run that was stopped.

    The sampler reports between steps and has no state to restore, so it is safe to raise an
    exception there: its compiled programs are kept, and the next call starts from scratch.
    """

    def __init__(
        self,
        show: Show,
        stopped: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            show: Receives progress updates.
            stopped: Set from another thread to end the run.
            clock: Returns seconds, from any start.
        """
        self._show = show
        self._stopped = stopped
        self._clock = clock
        self._last = clock()
        self._seconds: list[float] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `sampler.Progress`.

        Raises:
            Stopped: The run was stopped.
        """
        self.check()
        now = self._clock()
        if stage == "denoise":
            self._seconds.append(now - self._last)
        self._last = now
        self._show(*self._describe(stage, done, total))

    def check(self) -> None:
        """Raises `Stopped` if the run was stopped."""
        if self._stopped.is_set():
            raise Stopped

    @property
    def seconds_per_step(self) -> float:
        """Median seconds of the solver's steps; NaN before the first."""
        return median(self._seconds) if self._seconds else float("nan")

    def _describe(self, stage: str, done: int, total: int) -> tuple[float, str]:
        if stage == "denoise":
            left = (total - done) * self.seconds_per_step
            remaining = f", about {format_seconds(left)} left" if done < total else ""
            return done / total, f"step {done} of {total}{remaining}"
        if stage == "compile" and done < total:
            return 0.0, f"getting ready: program {done + 1} of {total}, compiled once per size"
        return 1.0, "drawing the frames"


def format_seconds(seconds: float | int) -> str:
    """Returns a duration for people to read: "4 s", "2 min 5 s", "1 h 3 min"."""
    whole = max(1, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_of_hour} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
