"""Log files have every record, whatever the disk does meanwhile."""

import warnings
from pathlib import Path

import pytest
import storage

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.training.logfile import LogFile


def test_a_local_record_is_there_at_once(tmp_path: Path):
    log = LogFile(tmp_path / "new" / "log", b"begin\n")
    log.add(b"one\n")
    assert log.path.read_bytes() == b"begin\none\n"
    log.add(b"two\n")
    assert log.path.read_bytes() == b"begin\none\ntwo\n" and log.size == 14


def test_a_full_disk_delays_records_and_cuts_none(tmp_path: Path):
    log = LogFile(tmp_path / "log", b"begin\n")
    with storage.full_disk(16):
        with pytest.warns(
            UserWarning, match="log can't be written .*File too large.*training continues"
        ):
            log.add(b"a long record\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once is enough
            log.add(b"another\n")
    log.add(b"last\n")
    assert log.path.read_bytes() == b"begin\na long record\nanother\nlast\n"


def test_a_place_that_takes_no_file_is_refused_at_the_start(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="can't be written"):
        LogFile(tmp_path / "file" / "log")


def test_a_remote_file_is_written_every_half_minute(monkeypatch: pytest.MonkeyPatch):
    storage.memory_bucket(monkeypatch)
    now = 0.0
    log = LogFile("gs://bucket/run/log", b"begin\n", clock=lambda: now)
    now = 29.0
    log.add(b"one\n")
    assert files.read_bytes(log.path) == b"begin\n"
    now = 31.0
    log.add(b"two\n")
    assert files.read_bytes(log.path) == b"begin\none\ntwo\n"
    log.add(b"three\n")
    assert files.read_bytes(log.path) == b"begin\none\ntwo\n"
    log.flush()
    assert files.read_bytes(log.path) == b"begin\none\ntwo\nthree\n"


def test_remote_storage_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    storage.memory_bucket(monkeypatch)
    log = LogFile("gs://bucket/log")
    write = files.write_bytes

    def fail(path, data):
        raise ConnectionError("the bucket is away")

    monkeypatch.setattr(files, "write_bytes", fail)
    log.add(b"one\n")
    with pytest.warns(UserWarning, match="the bucket is away"):
        log.flush()
    monkeypatch.setattr(files, "write_bytes", write)
    log.add(b"two\n")
    log.flush()
    assert files.read_bytes(log.path) == b"one\ntwo\n"
