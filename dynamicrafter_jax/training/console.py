"""What the person at the keyboard sees of a run: a progress bar, or a line now and then."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

from tqdm import tqdm

# The numbers that have a place in a line, in order. Others have one too unless their name holds a
# slash, which marks what is of interest in TensorBoard only.
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
    """Returns the numbers of a step in words, those that a line has room for."""
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
    """Shows how far a run has come.

    One process in a terminal has a progress bar with the latest numbers behind it. Otherwise, in a
    log file or among several hosts, each report is a line.
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
        """Shows the bar, if there is to be one.

        Args:
            total: Steps of the whole run.
            first: Steps done before this process.
            enabled: False for all processes but one, where nothing is shown.
            bar: Whether to show a bar; None: if `stream` is a terminal.
            stream: Where to; None: stderr.
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
        """Notes that so many steps of the run are done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step."""
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
        """Says what begins, which may take minutes, and how long it took."""
        self.say(f"{what}: minutes for a large model")
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
