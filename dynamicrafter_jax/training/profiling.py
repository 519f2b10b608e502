"""Records a profiler trace of a few steps, for TensorBoard or Perfetto."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

FOLDER = "profile"
"""The trace's folder in a run's folder."""


class Profiler:
    """Traces steps `first` to `first + count - 1`, once.

        with Profiler(workdir, first=10, count=3) as profiler:
            for step in ...:
                profiler.before(step, metrics)
                state, metrics = train_step(state, batch, rng)

    A trace that fails causes a warning and does not end the run.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        first: int | None,
        count: int,
        enabled: bool = True,
    ) -> None:
        """Takes the steps; the trace is started by `before`.

        Args:
            workdir: Folder of the run, local or remote.
            first: The first step to trace, preferably not one that compiles. None traces nothing.
            count: How many steps to trace.
            enabled: Whether to trace the devices of this process.
        """
        self._folder = files.as_path(workdir) / FOLDER
        self._steps = range(first, first + count) if enabled and first is not None else range(0)
        self._scratch: tempfile.TemporaryDirectory | None = None  # while tracing
        self._latest: Any = None

    def before(self, step: int, latest: Any) -> None:
        """Starts or ends the trace, if it is time to.

        Args:
            step: The step that comes next.
            latest: Outputs of the previous step. Starting and ending the trace wait for them, so
                that it covers whole steps.
        """
        self._latest = latest
        if self._scratch is None and step in self._steps:
            self._start()
        elif self._scratch is not None and step not in self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if the run ends early."""
        if self._scratch is None:
            return
        self._steps = range(0)
        # The profiler writes local files only, and a run's folder may be remote.
        with self._scratch as scratch:
            self._scratch = None
            try:
                jax.block_until_ready(self._latest)
                jax.profiler.stop_trace()
                for file in sorted(Path(scratch).rglob("*")):
                    if file.is_file():
                        place = self._folder / os.fspath(file.relative_to(scratch))
                        files.write_bytes(place, file.read_bytes())
            except (RuntimeError, OSError, UserError) as error:
                warnings.warn(f"no profiler trace: {error}", stacklevel=2)
        self._latest = None

    def __enter__(self) -> "Profiler":
        """Returns the profiler itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the trace, if the run ends early."""
        self.close()

    def _start(self) -> None:
        jax.block_until_ready(self._latest)
        scratch = tempfile.TemporaryDirectory()
        try:
            jax.profiler.start_trace(scratch.name)
        except RuntimeError as error:
            scratch.cleanup()
            self._steps = range(0)
            warnings.warn(f"no profiler trace: {error}", stacklevel=3)
        else:
            self._scratch = scratch
