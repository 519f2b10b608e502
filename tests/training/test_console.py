"""What a run shows."""

import io
import re

import pytest

from dynamicrafter_jax.training.console import Console, format_scalars

VALUES = {
    "speed/step_seconds": 2.4912,
    "loss": 0.12341,
    "grad_norm": 0.5234,
    "learning_rate": 1e-5,
    "loss/quarter_0": 0.3,
    "speed/clips_per_second": 3.2105,
    "speed/tflops_per_device": 41.23,
    "speed/utilisation": 0.4512,
    "memory/peak_gib": 38.12,
    "speed/data_wait": 0.018,
    "broken_clips": 3.0,
}


def test_a_line_says_all_that_matters():
    screen = io.StringIO()
    with Console(100000, stream=screen) as console:
        console.advance(1200)
        console.report(1200, VALUES)
    assert screen.getvalue() == (
        "step 1200/100000  loss 0.1234  grad_norm 0.523  lr 1.0e-05  3.21 clips/s  2.49 s/step  "
        "41.2 TFLOP/s (45% of peak)  38.1 GiB  data wait 2%  broken_clips 3\n"
    )


def test_what_is_not_known_is_left_out():
    assert format_scalars({"loss": float("nan"), "speed/tflops_per_device": 2.0}) == (
        "loss nan  2 TFLOP/s"
    )


@pytest.mark.parametrize("bar", [None, False])
def test_a_process_that_is_off_shows_nothing(bar, capsys):
    with Console(10, enabled=False, bar=bar) as console:
        console.advance(1)
        console.report(1, VALUES)
        console.say("hello")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_the_numbers_behind_it():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    with Console(10, first=4, stream=screen) as console:
        console.report(5, {"loss": 0.5})
        console.advance(7)
        console.say("a word")
    assert "\na word\n" in screen.getvalue().replace("\r", "\n")
    last = screen.getvalue().rsplit("\r", 1)[1]
    assert " 7/10 " in last and "loss 0.5000" in last


def test_what_takes_long_is_said_before_and_after():
    screen = io.StringIO()
    with Console(10, stream=screen) as console, console.timed("compiling the step"):
        before = screen.getvalue()
    assert before == "compiling the step: this may take minutes for a large model\n"
    assert re.fullmatch(r"compiling the step: \d+\.\d s\n", screen.getvalue()[len(before) :])
