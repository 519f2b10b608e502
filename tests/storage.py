"""File systems that tests write to: one in memory behind `gs://`, one that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem


def memory_bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Lets `gs://` paths live in memory; returns what is stored, by path."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    memory = MemoryFileSystem()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: memory)
    return memory.store


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow past `limit` bytes: the system itself refuses, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
