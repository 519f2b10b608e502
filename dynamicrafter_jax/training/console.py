"""Shows a run's progress on the terminal: a progress bar, or a line now and then."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

from tqdm import tqdm

# Numbers shown in a line, in this order. Others follow unless their name has a slash, which marks
# numbers that are only for TensorBoard.
_KNOWN = {
    "loss": "loss {:.4f}",
    "grad_norm": "grad_norm {:.3g}",
    "learning_rate": "lr {:.1e}",
    "speed/clips_per_second": "{:.3g} clips/s",
    "speed/step_seconds": "{:.3g} s/step",
    "speed/tflops_per_device": "{:.3g} TFLOP/s",
    "memory/peak_gib": "{:.1f} GiB",
    "speed/data_wait": "data wait {:.0%}",
}


def format_scalars(values: Mapping[str, float]) -> str:
    """Returns a step's numbers as text, leaving out those only for TensorBoard."""
    shown = {name: words.format(values[name]) for name, words in _KNOWN.items() if name in values}
    if "speed/utilisation" in values and "speed/tflops_per_device" in shown:
        shown["speed/tflops_per_device"] += f" ({values['speed/utilisation']:.0%} of peak)"
    others = [
        f"{name} {value:.4g}"
        for name, value in values.items()
        if name not in _KNOWN and "/" not in name
    ]
    return "  ".join([*shown.values(), *others])


class Console:
    """Shows the progress of a run.

    In a terminal, it is a progress bar followed by the latest numbers; in a log file, each report
    is a line.
    """

    def __init__(
        self,
        total: int,
        first: int = 0,
        *,
        enabled: bool = True,
        bar: bool | None = None,
        stream: TextIO | io.TextIOBase | None = None,
    ) -> None:
        """Shows the bar, if there is one.

        Args:
            total: Steps of the whole run.
            first: Steps done before this process started.
            enabled: Whether to show anything; True for only one of several processes.
            bar: Whether to show a bar; None shows one if `stream` is a terminal.
            stream: Where to write; None for stderr.
        """
        self._total = total
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._bar = None
        if enabled and (self._stream.isatty() if bar is None else bar):
            self._bar = tqdm(
                total=total, initial=first, file=self._stream, unit="step", dynamic_ncols=True
            )

    def advance(self, step: int) -> None:
        """Advances the bar to a number of steps done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the numbers of a step."""
        if self._bar is not None:
            self._bar.set_postfix_str(format_scalars(values))
        else:
            self.say(f"step {step}/{self._total}  {format_scalars(values)}")

    def say(self, text: str) -> None:
        """Shows a line of text."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Announces an action that may take minutes, and says how long it took."""
        self.say(f"{what}: this may take minutes for a large model")
        started = time.perf_counter()
        yield
        self.say(f"{what}: {time.perf_counter() - started:.1f} s")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Console":
        """Returns the console itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it stands."""
        self.close()
