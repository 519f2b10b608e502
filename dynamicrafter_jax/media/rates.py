"""Frame rates, from the times at which frames are shown."""

from fractions import Fraction

# Files with times in milliseconds round each of them.
_ROUNDING = Fraction(1, 1000)


def frame_rate(
    count: int, ticks: int, time_base: Fraction, told: Fraction | None
) -> Fraction | None:
    """Returns the average number of frames a second in a video.

    Args:
        count: Number of frames, including the first and the last.
        ticks: Time from the first to the last, in ticks.
        time_base: Duration of a tick, in seconds.
        told: The rate in the file's header. It is used if the times agree with it up to rounding,
            and if there are no times.

    Returns:
        The rate, or None if it follows neither from the times nor from the header.
    """
    seconds = ticks * time_base
    if count < 2 or seconds <= 0:
        return told or None
    if told and abs(seconds - (count - 1) / told) <= min(time_base, _ROUNDING):
        return told
    return (count - 1) / seconds
