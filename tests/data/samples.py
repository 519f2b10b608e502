"""Samples that tests of the loader read. Workers import this, so it imports little."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from dynamicrafter_jax.errors import UserError

Example = dict[str, np.ndarray]


def numbered(index: int) -> Example:
    """A sample that is a function of its number, with the kinds of arrays that ours have."""
    rng = np.random.default_rng(index)
    return {
        "index": np.asarray(index, np.int64),
        "video": rng.integers(0, 256, (2, 3, 5, 3), dtype=np.uint8),
        "ids": rng.integers(0, 49408, 7, dtype=np.int32),
        "fs": np.asarray(rng.random(), np.float32),
        "problem": np.asarray(b"" if index % 3 else f"sample {index} is odd".encode(), "S200"),
    }


def surroundings(index: int) -> Example:
    """What the process is like that makes the sample."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {
        "process": np.asarray(os.getpid()),
        "jax": np.asarray(sys.modules.get("jax") is not None),
        "pytest": np.asarray("pytest" in sys.modules),
        "deaf": np.asarray({signal.SIGINT, signal.SIGTERM} <= blocked),
    }


class Failing:
    """Samples, one of which fails."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    def __call__(self, index: int) -> Example:
        if index == self.at:
            match self.how:
                case "user":
                    raise UserError("the table has no column 'name': add it")
                case "odd":
                    raise Unpicklable(3, "frames")
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(600)
        return numbered(index)


class Unpicklable(Exception):
    def __init__(self, count: int, what: str) -> None:
        super().__init__(f"{count} {what} are too few")


class Noted:
    """Samples that leave a file named by their number in a folder when they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, index: int) -> Example:
        (self.folder / str(index)).touch()
        return numbered(index)
