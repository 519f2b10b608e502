"""A run that is killed goes on as if it had not been."""

import signal
import time

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow

STEPS = 45
KILLS = 3

# Most of a restart is to trace and to load what was compiled: less of a network, less time.
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=2",
    "--config.unet.attention_resolutions=()",
)

# Before any run: the steps at which it is killed, and how many seconds later: not past the end.
DRAW = np.random.default_rng(2310_12190)
KILLED_AT = np.sort(DRAW.integers(1, 30, KILLS)).tolist()
LATER = DRAW.uniform(0, 0.5, KILLS).tolist()
# Then it is asked to stop, where nothing would be saved otherwise.
ASKED_AT = 32
RARELY = "--config.train.checkpoint_every=1000"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return runs.make_videos(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, videos):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    said = runs.finish(runs.start(workdir, videos, *FLAGS))
    assert said.count("skipped broken.mp4") == 1
    return workdir


def wait_for(workdir, step, process):
    deadline = time.monotonic() + 300
    while max(runs.losses(workdir), default=0) < step:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same(workdir, uninterrupted):
    assert runs.losses(workdir) == runs.losses(uninterrupted)
    ours, wanted = runs.saved(workdir, STEPS), runs.saved(uninterrupted, STEPS)
    assert set(ours) == set(wanted) and len(wanted) > 100
    for name, array in wanted.items():
        assert np.array_equal(ours[name], array), name


def test_kills_and_a_wish_to_stop_change_no_loss_and_no_parameter(tmp_path, videos, uninterrupted):
    for step, later in zip(KILLED_AT, LATER, strict=True):
        process = runs.start(tmp_path, videos, *FLAGS)
        wait_for(tmp_path, step, process)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = runs.start(tmp_path, videos, *FLAGS, RARELY)
    wait_for(tmp_path, ASKED_AT, process)
    process.send_signal(signal.SIGTERM)
    said = runs.finish(process, status=143)
    last = max(runs.losses(tmp_path))
    assert f"stopped after step {last}, which is saved: run the same command to resume" in said
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
    said = runs.finish(runs.start(tmp_path, videos, *FLAGS, RARELY))
    assert f"step {last + 1}/{STEPS}" in said and f"step {last}/{STEPS}" not in said
    assert_same(tmp_path, uninterrupted)
