"""What a run writes down as it goes: TensorBoard events, and the same numbers as lines of JSON."""

import io
import json
import math
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from dynamicrafter_jax import media
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.training.logfile import LogFile

LINES = "metrics.jsonl"
"""One JSON object a line: `step`, `time` (Unix seconds), and the scalars by name."""

_MESSAGES: Any = event_pb2  # its classes are made when it is imported
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\..+")
_REMOTE_FILE_BYTES = 4 << 20
_PREVIEW_SIDE = 320  # pixels
_RGB = 3  # a colour space of TensorBoard's
_HIGHEST_GIF_FPS = 50


class MetricWriter:
    """Writes scalars and videos of a run.

    A run that resumes at a step gives TensorBoard and `metrics.jsonl` one history: what an earlier
    process noted for this step and later is dropped. A killed process loses no earlier record.

    Attributes:
        enabled: Whether anything is written.
    """

    def __init__(
        self, workdir: epath.PathLike, *, enabled: bool = True, first_step: int = 0
    ) -> None:
        """Starts this process's part of the history.

        Args:
            workdir: Folder of the run, local or remote.
            enabled: False for all processes but one, where every method does nothing.
            first_step: The first step that this process may note.

        Raises:
            UserError: The folder can't be written.
        """
        self.enabled = enabled
        self._workdir = files.as_path(workdir)
        if not enabled:
            return
        self._lines = LogFile(
            self._workdir / LINES, _lines_before(self._workdir / LINES, first_step)
        )
        # Readers then forget what earlier files hold for this step and later.
        start = _event(time.time(), first_step, session_log={"status": "START"})
        self._events = LogFile(_next_event_file(self._workdir), _opening() + start)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Notes numbers of a step; not-a-number and the infinities are numbers too.

        Args:
            step: The step.
            values: Python numbers, or NumPy or JAX arrays of no dimension, by name. In JSON, which
                has finite numbers alone, the others become null.

        Raises:
            TypeError: A value is not a real number.
        """
        if not self.enabled:
            return
        now = time.time()
        plain = {name: _as_number(name, value) for name, value in values.items()}
        shown = [{"tag": name, "simple_value": value} for name, value in plain.items()]
        self._add_event(_event(now, step, summary={"value": shown}))
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        line = json.dumps({"step": step, "time": round(now, 3), **finite}, allow_nan=False)
        self._lines.add(line.encode() + b"\n")

    def video(
        self, step: int, name: str, video: UInt8[np.ndarray, "t h w 3"], fps: float | int
    ) -> None:
        """Notes a video, which TensorBoard plays among the images.

        It is a preview: an animated GIF, at most 320 pixels wide and high, at most 50 frames a
        second.
        """
        if not self.enabled:
            return
        factor = math.ceil(max(video.shape[1:3]) / _PREVIEW_SIDE)
        small = np.stack([np.asarray(Image.fromarray(frame).reduce(factor)) for frame in video])
        _, height, width, _ = small.shape
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "preview.gif"
            media.write_video(path, small, min(fps, _HIGHEST_GIF_FPS))
            encoded = path.read_bytes()
        picture = {
            "height": height,
            "width": width,
            "colorspace": _RGB,
            "encoded_image_string": encoded,
        }
        shown = {"tag": name, "image": picture}
        self._add_event(_event(time.time(), step, summary={"value": [shown]}))

    def flush(self) -> None:
        """Writes what remote storage has not got yet."""
        if self.enabled:
            self._events.flush()
            self._lines.flush()

    def close(self) -> None:
        """Writes what is left."""
        self.flush()

    def __enter__(self) -> "MetricWriter":
        """Returns the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what is left."""
        self.close()

    def _add_event(self, record: bytes) -> None:
        # A remote file is written again as a whole, so it must not grow without end.
        if not self._events.local and self._events.size > _REMOTE_FILE_BYTES:
            self._events.flush()
            self._events = LogFile(_next_event_file(self._workdir), _opening())
        self._events.add(record)


def _as_number(name: str, value: Any) -> float:
    if getattr(value, "shape", None) == ():
        real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    else:
        real = isinstance(value, float | int) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"the metric {name!r} is {value!r}: a real number is needed")
    return float(value)


def _lines_before(path: epath.Path, first_step: int) -> bytes:
    """Returns the lines of an earlier process that stay."""
    kept = [line for line, values in _whole_lines(path) if values["step"] < first_step]
    return b"".join(line + b"\n" for line in kept)


def _whole_lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each line with what it says, without a last one that a kill cut off."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            yield line, values | {"step": int(values["step"])}
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{path}, line {number} is no line of metrics: left out", stacklevel=2)


def _opening() -> bytes:
    """Returns the record that every event file begins with."""
    return _event(time.time(), 0, file_version="brain.Event:2")


def _event(wall_time: float, step: int, **content: Any) -> bytes:
    """Returns a record of an event file: TensorBoard's message with its length and checksums."""
    message = _MESSAGES.Event(wall_time=wall_time, step=step, **content)
    record = io.BytesIO()
    RecordWriter(record).write(message.SerializeToString())
    return record.getvalue()


def _next_event_file(workdir: epath.Path) -> epath.Path:
    """Returns a path that sorts behind all others, since TensorBoard reads files by their names.

    The clock alone does not see to that: a run may resume within the second, or on another machine.
    """
    names = [path.name for path in workdir.iterdir()] if workdir.exists() else []
    last = max((int(match[1]) for name in names if (match := _EVENTS.fullmatch(name))), default=0)
    number = max(int(time.time()), last + 1)
    return workdir / f"events.out.tfevents.{number:010d}.{socket.gethostname()}"
