"""Batches by number, read ahead in worker processes.

Batch k holds samples k * batch_size to (k + 1) * batch_size - 1, and a sample is a function of its
number. So there is no state to save: a run resumes at step k by asking for the batches from k on,
with any number of workers and processes.
"""

import atexit
import contextlib
import functools
import gc
import importlib.machinery
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from dynamicrafter_jax.data.clips import Example
from dynamicrafter_jax.errors import UserError

_ENDLESS = 2**40  # batches: `grain` wants a number
_STARTING_SECONDS = 5.0
_STOPPING_SECONDS = 15.0
_starting = threading.Lock()


def batches(
    examples: Callable[[int], Example],
    *,
    batch_size: int,
    rows: Sequence[int],
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
) -> "Batches":
    """Returns the batches start, start + 1, ...: samples' arrays stacked along a new axis.

    They do not depend on the number of workers or on `start`.

    Args:
        examples: Makes a sample from its number. It is pickled for workers, which can't import
            JAX.
        batch_size: Samples in a batch, over all processes.
        rows: Which samples of each batch to return, as positions in it, in order: the part of the
            global batch that this process supplies.
        start: Number of the first batch. Earlier ones are not read.
        stop: The number after the last batch; None never stops.
        workers: Worker processes; 0 reads in this process, when a batch is asked for.
        prefetch: Batches that each worker keeps ready in its queue. As many again wait in this
            process, and one more at each end: 2 * (prefetch + 1) per worker are in memory.

    Raises:
        UserError: `workers` or `prefetch` is out of range.
    """
    if workers < 0:
        raise UserError(f"data.workers is {workers}: give a number of processes, 0 for none")
    if prefetch < 1:
        raise UserError(f"data.prefetch is {prefetch}: give a number of batches, 1 or more")
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise ValueError(f"rows {list(rows)} are not positions in a batch of {batch_size}")
    end = max(start, _ENDLESS if stop is None else stop)
    dataset = (
        grain.MapDataset.range(start * len(rows), end * len(rows))
        .map(_Sample(examples, batch_size, tuple(rows)))
        .batch(len(rows))
    )
    return Batches(dataset, min(workers, end - start), prefetch)


class _Sample(NamedTuple):
    """The sample at a position in the sequence of all samples that this process supplies."""

    examples: Callable[[int], Example]
    batch_size: int
    rows: tuple[int, ...]

    def __call__(self, position: int) -> Example:
        batch, row = divmod(position, len(self.rows))
        index = batch * self.batch_size + self.rows[row]
        try:
            return self.examples(index)
        except UserError:
            raise
        except Exception as error:
            # Errors travel between processes by pickle, which many kinds do not survive.
            text = f"sample {index} can't be made: {type(error).__name__}: {error}"
            raise RuntimeError(text).with_traceback(error.__traceback__) from None


class Batches(Iterator[Example]):
    """An iterator over batches, and the worker processes that make them.

    Worker w of n makes every n-th batch, starting with the w-th. Workers start at once, without JAX
    and without the main program's imports. They end with `close`, with the last reference to this
    object (that is, when the loop over it ends), and with this process, however it ends. Workers
    ignore the signals that stop a run (SIGINT, SIGTERM), so batches keep coming until this process
    has saved its state.

    What `examples` raises is raised again by the next batch: a `UserError` unchanged, anything else
    as a `RuntimeError` that names the error and the sample. Iteration then ends, as after the last
    batch.
    """

    def __init__(self, dataset: "grain.MapDataset[Example]", workers: int, prefetch: int) -> None:
        """Starts the workers; `batches` describes the arguments."""
        self._iterators: list[grain.DatasetIterator[Example]] = []
        self._given = 0
        self._stop: Callable[[], None] | None = None
        in_order = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        if not workers:
            self._iterators = [iter(dataset.to_iter_dataset(in_order))]
            return
        options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=prefetch)
        for part in (dataset[worker::workers] for worker in range(workers)):
            prefetched = part.to_iter_dataset(in_order).mp_prefetch(options, _end_with_parent)
            self._iterators.append(iter(prefetched))
        self._stop = _start(self._iterators)
        _open.add(self)

    def __next__(self) -> Example:
        """Returns the next batch: the stacked arrays by name."""
        if not self._iterators:
            raise StopIteration
        try:
            batch = next(self._iterators[self._given % len(self._iterators)], None)
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._given += 1
        # Copied, since memory shared with a worker is a file, kept while anything refers to it.
        return {name: np.array(batch.pop(name)) for name in sorted(batch)}

    def close(self) -> None:
        """Ends the workers, each when its batch is done; those that hang are killed."""
        stop, self._stop = self._stop, None
        self._iterators = []
        if stop is not None:
            stop()
            # The garbage holds semaphores. Python would complain if it collected them later, in
            # the middle of its own work on shared memory.
            gc.collect()

    def __enter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes itself."""
        self.close()

    def __del__(self) -> None:
        """Closes itself."""
        self.close()


_open: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_open() -> None:
    """Closes what is still open when Python exits, before Python itself ends the processes."""
    for batches in list(_open):
        batches.close()


def _start(iterators: Sequence[grain.DatasetIterator]) -> Callable[[], None]:
    """Starts the worker of each iterator, and returns a function that ends them all."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # `grain` has flags, and asks for their values
    for iterator in iterators:
        iterator.get_state()  # makes the queues, and with the first one Python's helper for them
    # Each iterator is closed in a thread of its own, since that waits for its worker. When Python
    # exits it is too late to start one.
    closing = threading.Event()
    closers = [
        threading.Thread(target=_close_later, args=(closing, iterator), daemon=True)
        for iterator in iterators
    ]
    with _starting:
        others = set(multiprocessing.active_children())
        with _main_module("dynamicrafter_jax.data.worker"), _signals_held_back():
            for iterator in iterators:
                iterator.start_prefetch()  # in a thread, which inherits what is held back
            for closer in closers:
                closer.start()
            processes = _await_new(len(iterators), others)
    return functools.partial(_stop, closing, closers, processes)


def _await_new(count: int, others: Collection[BaseProcess]) -> list[BaseProcess]:
    """Waits until `count` new processes have been started, but not for ever.

    An iterator that can't start its worker says so when it is asked for a batch.
    """
    deadline = time.monotonic() + _STARTING_SECONDS
    while True:
        new = [process for process in multiprocessing.active_children() if process not in others]
        if len(new) >= count or time.monotonic() > deadline:
            return new
        time.sleep(0.005)


def _close_later(closing: threading.Event, iterator: grain.DatasetIterator) -> None:
    closing.wait()
    iterator.close()


def _stop(
    closing: threading.Event,
    closers: Sequence[threading.Thread],
    processes: Sequence[BaseProcess],
) -> None:
    """Ends the workers, each when its batch is done; those that hang are killed."""
    closing.set()
    deadline = time.monotonic() + _STOPPING_SECONDS
    for closer in closers:
        closer.join(max(0.0, deadline - time.monotonic()))
        if closer.is_alive():
            for process in processes:
                process.kill()
            closer.join(_STOPPING_SECONDS)


@contextlib.contextmanager
def _main_module(name: str) -> Iterator[None]:
    """Makes processes started in this context import the module `name` as their main module."""
    main = sys.modules["__main__"]
    stand_in = types.ModuleType("__main__")
    stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Blocks the signals that stop a run, in this thread and in what it starts in this context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(*_: int) -> None:
    """Makes a worker exit when its parent is gone, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker process"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
