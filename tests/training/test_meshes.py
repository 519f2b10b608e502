"""The same losses on one device, on eight, and in two processes, each going on from another."""

import socket

import numpy as np
import pytest
import runs

STEPS = 10
# Attention however split is in `sampling/test_splits.py`: less of a network compiles sooner.
FEWER = "--config.unet.attention_resolutions=()"


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
    return [runs.finish(process) for process in processes]


@pytest.mark.slow
def test_a_run_that_changes_its_devices_is_that_of_one(tmp_path):
    videos = runs.make_videos(tmp_path / "videos")
    one, moved = tmp_path / "one", tmp_path / "moved"
    runs.finish(runs.start(one, videos, FEWER))
    wanted = runs.losses(one)

    runs.finish(runs.start(moved, videos, FEWER, "--config.train.steps=4", devices=8))
    leader, other = run_two_processes(moved, videos, FEWER, "--config.train.steps=7")
    assert "step 5/" in leader and "step 4/" not in leader and "step 5/" not in other
    said = runs.finish(runs.start(moved, videos, FEWER, devices=4))
    assert "step 8/" in said and "step 7/" not in said

    ours = runs.losses(moved)
    assert set(ours) == set(wanted) == set(range(1, STEPS + 1))
    assert np.allclose([ours[s] for s in wanted], list(wanted.values()), rtol=0, atol=1e-5)
