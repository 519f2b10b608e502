"""Files that a run keeps adding to, on any file system, without ever stopping the run."""

import os
import time
import warnings
from collections.abc import Callable

from etils import epath

from dynamicrafter_jax.runtime import files

_REMOTE_SECONDS = 30.0


class LogFile:
    """A file that grows by whole records.

    What can't be written (the disk is full, the storage does not answer) is kept and tried again
    with the next record: a run must not end because its curves can't be saved. A local file has
    every record as soon as it is added. Remote storage can't add to a file, so there the whole
    file is written again, at most every half minute.

    Attributes:
        path: The file.
        local: Whether it is on a file system of this machine.
        size: Its bytes, written or not.
    """

    def __init__(
        self,
        path: epath.PathLike,
        content: bytes = b"",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the file, or replaces the one that is there, with `content`.

        Raises:
            UserError: It can't be written.
        """
        self.path = files.as_path(path)
        self.size = len(content)
        self.local = "://" not in os.fspath(self.path)
        self._clock = clock
        # Of a local file what is still to be written, of a remote one everything.
        self._bytes = bytearray(b"" if self.local else content)
        self._written, self._failing = len(content), False
        files.write_bytes(self.path, content)
        self._tried = clock()

    def add(self, record: bytes) -> None:
        """Adds a record at the end."""
        self._bytes += record
        self.size += len(record)
        if self.local or self._clock() - self._tried >= _REMOTE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet; warns if that fails."""
        if self._written == self.size:
            return
        self._tried = self._clock()
        try:
            self._write()
        except Exception as error:  # storage clients raise errors of their own kinds
            if not self._failing:
                reason = " ".join(str(error).split()) or type(error).__name__
                warnings.warn(
                    f"{self.path} can't be written ({reason}): training continues, and what is "
                    "missing is written when it can be",
                    stacklevel=2,
                )
            self._failing = True
        else:
            self._failing = False
            self._written = self.size

    def _write(self) -> None:
        if not self.local:
            files.write_bytes(self.path, bytes(self._bytes))
            return
        with open(self.path, "r+b") as file:
            # An earlier attempt may have left part of a record.
            file.truncate(self._written)
            file.seek(self._written)
            file.write(self._bytes)
        self._bytes.clear()
