import math
import threading

import pytest

from dynamicrafter_jax.app.progress import Stopped, Watch, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_and_the_time_left_are_shown():
    shown, clock = [], Clock()
    watch = Watch(lambda share, words: shown.append((share, words)), threading.Event(), clock)
    assert math.isnan(watch.seconds_per_step)
    watch("compile", 0, 3)
    clock.now += 50  # compiling is no step
    watch("compile", 2, 3)
    for done in range(1, 5):
        clock.now += 40 if done == 1 else 2  # one slow step is not the pace
        watch("denoise", done, 4)
    watch("compile", 3, 3)
    watch("decode", 1, 1)
    shares, words = zip(*shown, strict=True)
    assert shares == (0, 0, 0.25, 0.5, 0.75, 1, 1, 1)
    assert "program 1 of 3" in words[0] and "program 3 of 3" in words[1]
    assert words[2] == "step 1 of 4, about 2 min 0 s left"
    assert words[4] == "step 3 of 4, about 2 s left"
    assert words[5] == "step 4 of 4"
    assert watch.seconds_per_step == 2


def test_a_run_that_is_stopped_ends_at_its_next_report():
    stopped, shown = threading.Event(), []
    watch = Watch(lambda share, words: shown.append(words), stopped)
    watch("denoise", 1, 9)
    stopped.set()
    with pytest.raises(Stopped):
        watch("denoise", 2, 9)
    assert len(shown) == 1


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "1 s"), (4.4, "4 s"), (59.4, "59 s"), (60, "1 min 0 s"), (125, "2 min 5 s")],
)
def test_durations_are_said_as_people_do(seconds, words):
    assert format_seconds(seconds) == words


def test_hours_have_no_seconds():
    assert format_seconds(3 * 3600 + 5 * 60 + 7) == "3 h 5 min"
