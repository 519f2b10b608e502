"""Frames a second, by the times at which frames are shown."""

from fractions import Fraction

# Files that count milliseconds round each time.
_ROUNDING = Fraction(1, 1000)


def frame_rate(
    count: int, ticks: int, time_base: Fraction, told: Fraction | None
) -> Fraction | None:
    """Returns the frames a second of a video, on average.

    Args:
        count: Frames from the first to the last, these included.
        ticks: Time from the first to the last.
        time_base: Seconds of a tick.
        told: What the file says. It is taken where the times agree with it but for rounding, and
            where there are no times.

    Returns:
        The rate, or None if neither the times nor the file tell.
    """
    seconds = ticks * time_base
    if count < 2 or seconds <= 0:
        return told or None
    if told and abs(seconds - (count - 1) / told) <= min(time_base, _ROUNDING):
        return told
    return (count - 1) / seconds
