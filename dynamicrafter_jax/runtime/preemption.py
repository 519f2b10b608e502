"""Stopping a run when it is asked to: by a scheduler that wants the machine back, or by Ctrl-C.

A request only raises a flag, which the training loop asks for after every step: it then saves and
ends, so that no finished step is lost.
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
"""Of a process that SIGTERM ends, by which schedulers know to start it again."""

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Preemption:
    """Watches for SIGTERM and SIGINT while it is entered, on the main thread.

    The first Ctrl-C asks the run to save and end; the second one ends it at once.

    Under `jax.distributed`, SIGTERM belongs to JAX: whichever processes it reaches, all of them
    agree on one step to stop after. A Ctrl-C is handed on to JAX as a SIGTERM, for the same end.
    """

    def __init__(self) -> None:
        """Watches nothing yet."""
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
        """Returns whether the run shall save and end now, after `step` steps.

        With several processes, all of them must ask after every step, and all get the same answer.

        Raises:
            UserError: If processes can't agree because JAX's service for that is off.
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
