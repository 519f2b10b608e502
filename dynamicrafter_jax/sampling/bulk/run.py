"""Runs a bulk job: reads, samples and writes at the same time, so that the device never waits."""

import contextlib
import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.map_ahead import map_ahead
from dynamicrafter_jax.sampling.bulk.batches import BatchSampler
from dynamicrafter_jax.sampling.bulk.loading import Inspected, Loaded, in_words
from dynamicrafter_jax.sampling.bulk.writing import Writer
from dynamicrafter_jax.sampling.sampler import shown_frames

# Batches queued on the device: the current one and the next one.
_QUEUED = 2
# Batches that are read ahead of those.
_AHEAD = 3
_WRITERS = min(4, os.cpu_count() or 1)
_READERS = 2


@dataclasses.dataclass(frozen=True)
class Summary:
    """The results of a run.

    Attributes:
        made: Outputs written.
        again: Outputs among these that existed, but made from other images, settings or weights, or
            not whole.
        kept: Outputs that existed already.
        failed: Outputs whose images can't be used.
        seconds: Time from requesting the first batch to writing the last file, without `compiling`.
        compiling: Seconds in which the device waited for compilation.
        device_busy: Share of `seconds` in which the device had a batch to work on. Gaps between
            programs within a batch count as work.
        stopped: Whether it was asked to stop before the end.
    """

    made: int
    again: int
    kept: int
    failed: int
    seconds: float
    compiling: float
    device_busy: float
    stopped: bool

    def __str__(self) -> str:
        """Returns one line for people."""
        rate = self.made / self.seconds if self.seconds else 0.0
        again = f" ({self.again} again, since their inputs changed)" if self.again else ""
        return (
            f"{self.made} clips{again} in {self.seconds:.1f} s, {rate:.3g} clips/s, device busy "
            f"{100 * self.device_busy:.1f} %, plus {self.compiling:.1f} s of compilation; "
            f"{self.kept} were there already, {self.failed} failed"
        )


@dataclasses.dataclass
class Span:
    """When a batch kept the device busy, in seconds of `time.perf_counter`."""

    asked: float
    compiling: float
    finished: float = float("nan")


def busy_share(spans: Sequence[Span], begin: float, end: float) -> tuple[float, float, float]:
    """Returns seconds without compilation, seconds spent waiting for it, and the busy share.

    Args:
        spans: Spans of all batches, in order.
        begin: Start of the run.
        end: End of the run.
    """
    idle = compiling = 0.0
    free = begin
    for span in spans:
        idle += max(0.0, span.asked - free)
        compiling += max(0.0, span.asked + span.compiling - max(free, span.asked))
        free = span.finished
    seconds = end - begin - compiling
    idle += end - free
    return seconds, compiling, 1 - idle / seconds if seconds > 0 else 0.0


class BulkRun:
    """Takes batches from disk to disk.

    While the device works on one batch, the next is queued behind it, images of later ones are
    read, and videos of earlier ones are encoded and written.
    """

    def __init__(
        self,
        sample: BatchSampler,
        load: Callable[[Any], Loaded],
        writer: Writer | None,
        stop: Callable[[int], bool] = lambda batch: False,
        written: Callable[[Inspected, float], None] = lambda inspected, seconds: None,
    ) -> None:
        """Takes the parts of the run.

        Args:
            sample: Queues a batch on the device.
            load: Reads a batch; called in threads.
            writer: Writes outputs; None if another process does.
            stop: Returns whether to stop before the batch with a number.
            written: Called with each output and the seconds it took, in threads.
        """
        self._sample = sample
        self._load = load
        self._writer = writer
        self._stop = stop
        self._written = written
        self._slots = threading.BoundedSemaphore(2 * _WRITERS)  # videos waiting to be written

    def __call__(self, batches: Iterable[Any]) -> Summary:
        """Makes all outputs of `batches` that are missing; `load` takes one batch.

        Raises:
            UserError: An output can't be written. It is recorded, like all outputs that fail.
        """
        begin = time.perf_counter()
        spans: list[Span] = []
        made = again = kept = failed = 0
        stopped = False
        queued: deque[Future[None]] = deque()
        writes: deque[Future[None]] = deque()
        sampler = self._sample.sampler
        with (
            ThreadPoolExecutor(_WRITERS) as writers,
            ThreadPoolExecutor(1) as collector,
            ThreadPoolExecutor(_READERS) as readers,
            sampler.in_force(),
        ):
            for number, batch in enumerate(map_ahead(readers, self._load, batches, _AHEAD)):
                if stopped := self._stop(number):
                    break
                kept += sum(one.finished for one in batch.inspected)
                for one in batch.inspected:
                    if one.error is not None:
                        failed += 1
                        if self._writer is not None:
                            self._writer.error(one, one.error)
                if not batch.rows:
                    continue
                while len(queued) >= _QUEUED:
                    queued.popleft().result()
                while writes and writes[0].done():
                    writes.popleft().result()
                asked, compiled = time.perf_counter(), sampler.compile_seconds
                with self._noting([one for _, one in batch.wanted]):
                    _, video = self._sample(batch.rows)
                spans.append(Span(asked, sampler.compile_seconds - compiled))
                arguments = (video, batch, spans, len(spans) - 1, writers, writes)
                queued.append(collector.submit(self._collect, *arguments))
                made += len(batch.wanted)
                again += sum(one.stale for _, one in batch.wanted)
            for future in queued:
                future.result()
            for future in writes:
                future.result()
        seconds, compiling, busy = busy_share(spans, begin, time.perf_counter())
        return Summary(made, again, kept, failed, seconds, compiling, busy, stopped)

    @contextlib.contextmanager
    def _noting(self, outputs: Sequence[Inspected]) -> Iterator[None]:
        """Records outputs as failed if the block fails, which then ends the run."""
        try:
            yield
        except Exception as error:
            if self._writer is not None:
                # If the record can't be written either, the first error matters more.
                with contextlib.suppress(UserError, OSError):
                    for one in outputs:
                        self._writer.error(one, in_words(error))
            raise

    def _collect(
        self,
        video: Any,
        batch: Loaded,
        spans: Sequence[Span],
        number: int,
        writers: ThreadPoolExecutor,
        writes: deque[Future[None]],
    ) -> None:
        """Waits for a batch, and passes its videos on to be written."""
        with self._noting([one for _, one in batch.wanted]):
            jax.block_until_ready(video)
        span = spans[number]
        span.finished = time.perf_counter()
        if self._writer is None:
            return
        free = spans[number - 1].finished if number else 0.0
        seconds = span.finished - max(free, span.asked + span.compiling)
        frames = np.asarray(video)
        for place, one in batch.wanted:
            self._slots.acquire()
            shown = batch.rows[place].window.cut(frames[place])
            each = seconds / len(batch.wanted)
            writes.append(writers.submit(self._write, self._writer, one, shown, each))

    def _write(
        self, writer: Writer, inspected: Inspected, video: np.ndarray, seconds: float
    ) -> None:
        try:
            with self._noting([inspected]):
                writer.video(inspected, shown_frames(video, inspected.request.loop), seconds)
            self._written(inspected, seconds)
        finally:
            self._slots.release()
