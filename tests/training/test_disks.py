"""A disk that refuses, a process that dies, and the parameters that are written once."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import abstract, assert_same, make_state, placed, refusal, steps_in
from storage import full_disk

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.state import TrainState


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path, keep_last=3) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [10, 1000, 100_000])
def test_a_disk_that_fills_keeps_the_last_good_step(
    tmp_path: Path, limit: int, capfd: pytest.CaptureFixture[str]
):
    """The system itself refuses, in the middle of what TensorStore writes."""
    good, next_state = make_state(1, width=10_000), make_state(2, width=10_000)
    with Checkpoints(tmp_path, keep_last=1) as opened:
        opened.save(good, wait=True)

        def fill() -> None:
            opened.save(next_state)
            opened.wait()

        with full_disk(limit):
            text = refusal(fill)
        assert "checkpoints/2 could not be saved (File too large): fix that and st" in text
        assert text.endswith("to resume from step 1")
        assert opened.latest_step() == 1
        gc.collect()
        assert "ERROR:" not in capfd.readouterr().err, "one line is enough"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Checkpoints(tmp_path, keep_last=1) as again:
                assert_same(again.restore(abstract(good)), good)
        later = next_state._replace(step=next_state.step + 1)
        assert opened.save(later, wait=True), "there is room again"
        assert_same(opened.restore(abstract(later)), later)


def test_what_a_failed_save_still_writes_stops_no_later_one(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unfinished = tmp_path / "checkpoints/1.orbax-checkpoint-tmp"
    (unfinished / "params").mkdir(parents=True)
    remove, left = shutil.rmtree, [OSError(errno.ENOTEMPTY, "Directory not empty")] * 2

    def remove_unless_written_into(path: str) -> None:
        if left:
            raise left.pop()
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_unless_written_into)
    checkpoints.save(make_state(2), wait=True)
    assert not left
    assert steps_in(tmp_path) == ["2"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_is_told_at_the_next_step(checkpoints: Checkpoints):
    with full_disk(1000):
        try:
            checkpoints.save(make_state(1, width=10_000))
            pending = checkpoints._pending
            assert pending is not None
            pending[1].exception(timeout=60)
        finally:
            assert "could not be saved" in refusal(checkpoints.check)
    checkpoints.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path: Path):
    with (
        full_disk(1000),
        pytest.raises(ZeroDivisionError),
        Checkpoints(tmp_path, keep_last=1) as opened,
    ):
        opened.save(make_state(1, width=10_000))
        raise ZeroDivisionError
    with (
        full_disk(1000),
        pytest.raises(UserError),
        Checkpoints(tmp_path / "other", keep_last=1) as opened,
    ):
        opened.save(make_state(1, width=10_000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_workdir_that_is_a_file(tmp_path: Path):
    (tmp_path / "run").touch()
    with Checkpoints(tmp_path / "run", keep_last=1) as opened:
        assert "1 could not be saved (Not a directory)" in refusal(
            lambda: opened.save(make_state(1), wait=True)
        )


KILLED = """
import os, signal, sys, time
import jax.numpy as jnp, optax
from dynamicrafter_jax.weights import stored
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.state import TrainState

workdir, when = sys.argv[1:]
params = {"unet": {"kernel": jnp.arange(3_000_000, dtype=jnp.float32)}}
state = TrainState(jnp.int32(1), params, {}, optax.adam(1e-3).init(params), params)
checkpoints = Checkpoints(workdir, keep_last=1)
checkpoints.save(state, wait=True)
if when == "before the last act":
    stored.list_files = lambda path: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(state._replace(step=jnp.int32(2)))
if when == "while writing":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "when", ["before the last act", pytest.param("while writing", marks=pytest.mark.slow)]
)
def test_a_process_killed_in_the_middle_of_a_save(tmp_path: Path, when: str):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(tmp_path), when]
    killed = subprocess.run(command, env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    values = np.arange(3_000_000, dtype=np.float32)
    params = {"unet": {"kernel": jnp.asarray(values)}}
    state = TrainState(jnp.int32(1), params, {}, optax.adam(1e-3).init(params), params)
    with pytest.warns(UserWarning, match=r"is ignored: 2\.orbax-checkpoint-tmp$"):
        opened = Checkpoints(tmp_path, keep_last=1)
    with opened:
        assert opened.latest_step() == 1
        restored = opened.restore(abstract(state))
        assert_same(restored, state)
        opened.save(restored._replace(step=jnp.int32(2)))
    assert steps_in(tmp_path) == ["2"]


# Frozen parameters


def frozen_tree() -> dict[str, dict[str, jax.Array]]:
    random = np.random.default_rng(0)
    tree = {
        "vae": {"kernel": jnp.asarray(random.standard_normal((16, 4)), jnp.float32)},
        "text_encoder": {"bias": jnp.asarray(random.standard_normal(5), jnp.bfloat16)},
    }
    return jax.device_put(tree, jax.tree.map(lambda leaf: placed(leaf, 8), tree))


def abstract_frozen(devices: int = 8) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed(leaf, devices)),
        frozen_tree(),
    )


@pytest.mark.parametrize("devices", [8, 1])
def test_frozen_parameters_come_back(checkpoints: Checkpoints, tmp_path: Path, devices: int):
    checkpoints.save_frozen(frozen_tree())
    checkpoints.save(make_state(1))
    restored = checkpoints.restore_frozen(abstract_frozen(devices))
    assert_same(restored, frozen_tree())
    assert restored["vae"]["kernel"].sharding == placed(jnp.zeros((16, 4)), devices)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "frozen"]


def test_frozen_parameters_are_written_once(checkpoints: Checkpoints, tmp_path: Path):
    other = jax.tree.map(jnp.zeros_like, frozen_tree())
    checkpoints.save_frozen(other)
    checkpoints.save_frozen(frozen_tree())  # the first start came to no checkpoint
    checkpoints.save(make_state(1), wait=True)
    text = refusal(lambda: checkpoints.save_frozen(other))
    assert "frozen belongs to the checkpoints in" in text
    assert_same(checkpoints.restore_frozen(abstract_frozen()), frozen_tree())


def test_no_frozen_parameters(checkpoints: Checkpoints, tmp_path: Path):
    checkpoints.save_frozen({})
    assert checkpoints.restore_frozen({}) == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_frozen_parameters_on_a_full_disk(checkpoints: Checkpoints, tmp_path: Path):
    with full_disk(100):
        text = refusal(lambda: checkpoints.save_frozen(frozen_tree()))
    assert "frozen could not be written: File too large" in text
    assert not (tmp_path / "frozen").exists()


def test_frozen_parameters_that_are_not_whole(checkpoints: Checkpoints, tmp_path: Path):
    text = refusal(lambda: checkpoints.restore_frozen(abstract_frozen()))
    assert "frozen is damaged (frozen/files.json is missing or broken): copy it again" in text
    checkpoints.save_frozen(frozen_tree())
    wanted = {"vae": abstract_frozen()["vae"]}
    text = refusal(lambda: checkpoints.restore_frozen(wanted))
    assert "frozen does not fit the config: 1 unexpected: text_encoder/bias (5,)" in text
    (tmp_path / "frozen/manifest.ocdbt").unlink()
    text = refusal(lambda: checkpoints.restore_frozen(abstract_frozen()))
    assert "frozen is damaged (frozen/manifest.ocdbt is missing)" in text
