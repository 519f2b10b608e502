"""The same losses on one device, on eight, and in two processes; and from one to another."""

import shutil
import socket

import numpy as np
import pytest
import runs

STEPS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return runs.make_videos(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory, videos):
    workdir = tmp_path_factory.mktemp("one")
    runs.finish(runs.start(workdir, videos))
    return runs.losses(workdir)


def run_two_processes(workdir, videos, *flags):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        runs.start(
            workdir,
            videos,
            f"--coordinator_address={address}",
            "--num_processes=2",
            f"--process_id={number}",
            *flags,
            devices=4,
        )
        for number in range(2)
    ]
    said = [runs.finish(process) for process in processes]
    assert "step 1/" in said[0] and "step 1/" not in said[1]


def assert_same(workdir, wanted):
    ours = runs.losses(workdir)
    assert set(ours) == set(wanted) == set(range(1, STEPS + 1))
    assert np.allclose([ours[s] for s in wanted], list(wanted.values()), rtol=0, atol=1e-5)


def test_eight_devices_and_a_restore_on_four(tmp_path, videos, on_one_device):
    half = f"--config.train.steps={STEPS // 2}"
    runs.finish(runs.start(tmp_path, videos, half, devices=8))
    runs.finish(runs.start(tmp_path, videos, devices=4))
    assert_same(tmp_path, on_one_device)


def test_two_processes_and_a_restore_in_one(tmp_path, videos, on_one_device):
    keep = "--config.train.keep_last=9"
    run_two_processes(tmp_path, videos, keep)
    assert_same(tmp_path, on_one_device)
    # As if they had been cut off after their second checkpoint.
    first, second, *later = sorted(int(f.name) for f in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert (first, second) == (3, 6) and later
    for step in later:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    said = runs.finish(runs.start(tmp_path, videos, keep, devices=1))
    assert f"step {second + 1}/{STEPS}" in said and f"step {second}/{STEPS}" not in said
    assert_same(tmp_path, on_one_device)
