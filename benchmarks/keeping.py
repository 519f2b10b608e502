"""Keeps what takes long to make in files, so that the same command resumes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def kept(file: Path | None, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns an array from its file; makes it and writes the file if there is none.

    Args:
        file: A file of NumPy's, in a folder that exists; None to keep nothing.
        make: Returns the array.
    """
    if file is None:
        return make()
    if file.exists():
        return np.load(file, allow_pickle=False)
    made = make()
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as output:
        np.save(output, made)
    part.replace(file)
    return made
