"""A workdir belongs to one run, and says so in a line."""

import json
import os
import warnings
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from storage import full_disk

from dynamicrafter_jax.config import config_from_json, load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.checkpoints import saved_steps
from dynamicrafter_jax.training.workdir import CHANGEABLE, FIXED, check_workdir, claim_workdir


def make_config(**changes: object) -> ConfigDict:
    config = ConfigDict(
        {
            "name": "tiny",
            "train": {"steps": 10, "learning_rate": 1e-4, "betas": (0.9, 0.999), "log_every": 5},
            "data": {"source": "/a/clips", "workers": 2, "condition_dropout": 0.05},
            "sampling": {"height": 64, "steps": 50},
            "mesh": {"data": 1},
        }
    )
    with config.unlocked():
        config.update_from_flattened_dict(
            {name.replace("__", "."): value for name, value in changes.items()}
        )
    return config


def claim_and_train(workdir: Path, config: ConfigDict) -> None:
    """Makes a workdir with a step, whose checkpoint is empty."""
    claim_workdir(workdir, config)
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    assert saved_steps(workdir) == [5]


def refusal(workdir: object, config: ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        claim_workdir(workdir, config)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_workdir_is_made(tmp_path: Path):
    workdir = tmp_path / "new" / "run"
    claim_workdir(workdir, make_config())
    assert os.listdir(workdir) == ["config.json"]
    stored = json.loads((workdir / "config.json").read_text())
    assert config_from_json(stored).to_dict() == make_config().to_dict()


def test_the_same_run_goes_on(tmp_path: Path):
    claim_workdir(tmp_path, make_config())
    before = (tmp_path / "config.json").stat()
    claim_workdir(tmp_path, make_config())
    assert (tmp_path / "config.json").stat() == before, "nothing to write"


def test_a_check_writes_nothing(tmp_path: Path):
    check_workdir(tmp_path / "new" / "run", make_config())
    assert list(tmp_path.iterdir()) == []
    claim_and_train(tmp_path, make_config())
    before = (tmp_path / "config.json").stat()
    check_workdir(tmp_path, make_config(train__steps=20))
    with pytest.raises(UserError, match=r"train\.learning_rate 0\.0001 -> 1e-05"):
        check_workdir(tmp_path, make_config(train__learning_rate=1e-5))
    assert (tmp_path / "config.json").stat() == before


def test_a_run_without_a_step_refuses_nobody(tmp_path: Path):
    """A typo in the first command must not be in the way of the next."""
    claim_workdir(tmp_path, make_config(data__source="/a/clibs", train__learning_rate=1.0))
    (tmp_path / "frozen").mkdir()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)  # cut short
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claim_workdir(tmp_path, make_config())
    stored = json.loads((tmp_path / "config.json").read_text())
    assert config_from_json(stored).to_dict() == make_config().to_dict()


def test_a_relative_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    claim_workdir("run", make_config())
    claim_workdir(tmp_path / "run", make_config())


def test_another_config_is_refused_field_by_field(tmp_path: Path):
    claim_and_train(tmp_path, make_config())
    before = (tmp_path / "config.json").read_bytes()
    other = make_config(
        train__learning_rate=1e-5, train__betas=(0.9, 0.99), mesh__data=8, sampling__height=32
    )
    with other.unlocked():
        other.train.ema_decay = 0.5
        del other.data.condition_dropout
    text = refusal(tmp_path, other)
    assert "train.learning_rate 0.0001 -> 1e-05" in text
    assert "train.betas [0.9, 0.999] -> [0.9, 0.99]" in text
    assert "sampling.height 64 -> 32" in text
    assert "train.ema_decay (no such field) -> 0.5" in text
    assert "data.condition_dropout 0.05 -> (no such field)" in text
    assert "mesh.data" not in text, "that may change"
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_does_not_change_the_run_may_change(tmp_path: Path):
    claim_and_train(tmp_path, make_config())
    longer = make_config(
        name="renamed", train__steps=20, train__log_every=1, data__workers=0, mesh__data=8,
        sampling__steps=10,
    )  # fmt: skip
    claim_workdir(tmp_path, longer)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert config_from_json(stored).to_dict() == longer.to_dict(), "it tells what runs now"


def test_moved_data_is_said(tmp_path: Path):
    claim_and_train(tmp_path, make_config())
    with pytest.warns(UserWarning, match='data.source "/a/clips" -> "/b/clips": unless'):
        claim_workdir(tmp_path, make_config(data__source="/b/clips"))


def test_the_list_of_changeable_fields_is_of_real_ones():
    """A field that was renamed must not become unchangeable, or changeable, unnoticed."""
    config = load_config("i2v_512")
    names = [
        f"{section}.{field}" for section, fields in config.items() if section != "name"
        for field in fields
    ]  # fmt: skip
    for pattern in (*CHANGEABLE, *FIXED):
        stem = pattern.removesuffix("*")
        assert pattern == "name" or any(name.startswith(stem) for name in names), pattern


@pytest.mark.parametrize(
    "field, old, new",
    [
        ("batch_size", 64, 32),
        ("seed", 0, 1),
        ("trainable", "all", "temporal frozen"),
        ("ema_decay", 0.0, 0.9),
        ("learning_rate", 1e-5, 1e-4),
    ],
)
def test_what_makes_another_run_is_refused(tmp_path: Path, field: str, old: object, new: object):
    config = load_config("i2v_512")
    config.train[field] = old
    claim_and_train(tmp_path, config)
    config.train[field] = new
    assert f"train.{field} {json.dumps(old)} -> {json.dumps(new)}" in refusal(tmp_path, config)


@pytest.mark.parametrize("content", ["", '{"train": {"st', "[1]", "\0\0"])
def test_a_half_written_config(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    assert "config.json is" in refusal(tmp_path, make_config())
    assert (tmp_path / "config.json").read_text() == content


def test_checkpoints_of_nobody_knows_what(tmp_path: Path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert "no config.json with their config" in refusal(tmp_path, make_config())


def test_a_converted_model_is_no_workdir(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"format_version": 1, "config": {}}')
    assert "is a converted model: give another workdir" in refusal(tmp_path, make_config())


def test_a_folder_of_something_else_is_no_workdir(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "config.json is not the config of a run: give another workdir" in refusal(
        tmp_path, make_config()
    )


def test_a_file_is_no_workdir(tmp_path: Path):
    (tmp_path / "run").write_text("")
    assert f"the workdir {tmp_path}/run is a file" in refusal(tmp_path / "run", make_config())
    assert "run is a file" in refusal(tmp_path / "run" / "below", make_config())
    assert "can't be written" in refusal("/proc/run", make_config())
    assert "ftp:// is not supported" in refusal("ftp://host/run", make_config())


def test_a_full_disk_claims_nothing(tmp_path: Path):
    with full_disk(10):
        assert "config.json can't be written: File too large" in refusal(tmp_path, make_config())
    assert os.listdir(tmp_path) == []
