"""Stops a run on request: by a scheduler that wants the machine back, or by Ctrl-C.

A request only sets a flag, which the training loop checks after every step. It then saves and ends,
so no finished step is lost.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from dynamicrafter_jax.errors import UserError

EXIT_STATUS = 143
"""Exit status after SIGTERM, which tells schedulers to start the process again."""

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Preemption:
    """A context that watches for SIGTERM and SIGINT, on the main thread.

    The first Ctrl-C asks the run to save and end; the second one ends it at once.

    Under `jax.distributed`, JAX handles SIGTERM: whichever processes receive it, all agree on the
    same step to stop after. A Ctrl-C is passed on to JAX as a SIGTERM, with the same effect.
    """

    def __init__(self) -> None:
        """Prepares to watch; signals are handled once the context is entered."""
        self._requested = False
        self._together = False
        self._previous: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> "Preemption":
        self._requested = False
        self._together = jax.distributed.is_initialized()
        self._handle(signal.SIGINT, self._interrupt)
        if not self._together:
            self._handle(signal.SIGTERM, self._terminate)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def requested(self, step: int) -> bool:
        """Returns whether the run should save and end now, after `step` steps.

        With several processes, all of them must call this after every step; all get the same
        answer.

        Raises:
            UserError: Processes can't agree because JAX's service for that is off.
        """
        if not self._together:
            return self._requested
        try:
            return multihost_utils.reached_preemption_sync_point(step)
        except RuntimeError as error:
            raise UserError(
                "several processes can't stop together: "
                "unset JAX_ENABLE_PREEMPTION_SERVICE, or set it to true"
            ) from error

    def _handle(self, number: signal.Signals, handler: _Handler) -> None:
        self._previous[number] = signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        self._requested = True
