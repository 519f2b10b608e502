"""What `run.json` says."""

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import storage

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import config_from_json, load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.workdir import SESSIONS_FILE, read_sessions, record_session

WEIGHTS = [{"name": "model.ckpt", "sha256": "0" * 64}]


def record(workdir, first_step=0, name="i2v_256"):
    record_session(
        workdir,
        config=load_config(name),
        weights=WEIGHTS,
        mesh=sharding.make_mesh(4),
        first_step=first_step,
    )


def test_all_that_made_a_run_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--config=i2v_256"])
    record(tmp_path / "run")
    (session,) = read_sessions(tmp_path / "run")
    assert config_from_json(session["config"]) == load_config("i2v_256")
    assert session["weights"] == WEIGHTS and session["first_step"] == 0
    assert session["command"] == ["train.py", "--config=i2v_256"]
    assert session["mesh"] == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 1}
    assert session["devices"] == {"cpu:cpu": 4}
    assert session["processes"] == 1
    for package in ("jax", "flax", "optax", "grain", "orbax-checkpoint"):
        assert session["versions"][package] == version(package)
    started = datetime.fromisoformat(session["started"])
    assert timedelta() <= datetime.now(UTC) - started < timedelta(minutes=1)
    assert "git_revision" in session


def test_every_start_is_kept(tmp_path: Path):
    for first_step, name in ((0, "i2v_256"), (700, "i2v_512")):
        record(tmp_path, first_step, name)
    sessions = read_sessions(tmp_path)
    assert [session["first_step"] for session in sessions] == [0, 700]
    assert [session["config"]["name"] for session in sessions] == ["i2v_256", "i2v_512"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    record(tmp_path)
    before = (tmp_path / SESSIONS_FILE).read_bytes()
    with storage.full_disk(len(before)), pytest.raises(UserError, match="can't be written"):
        record(tmp_path, 10)
    assert (tmp_path / SESSIONS_FILE).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"sessions": 3}', "{}"])
def test_a_damaged_file_is_neither_lost_nor_added_to(tmp_path: Path, content):
    (tmp_path / SESSIONS_FILE).write_text(content)
    with pytest.raises(UserError, match=r"run\.json does not list the sessions .* move it away"):
        record(tmp_path)
    assert (tmp_path / SESSIONS_FILE).read_text() == content


def test_remote_runs_have_one_too(monkeypatch: pytest.MonkeyPatch):
    storage.memory_bucket(monkeypatch)
    record("gs://bucket/run")
    record("gs://bucket/run", 5)
    assert len(json.dumps(read_sessions("gs://bucket/run"))) > 1000
    with pytest.raises(UserError, match="does not exist"):
        read_sessions("gs://bucket/other")
