"""Jobs that are killed, asked to stop, or shared by processes make what one undisturbed makes."""

import os
import re
import signal
import socket
import time

import bulk_jobs
import numpy as np
import pytest

pytestmark = pytest.mark.slow

KILLS = 5
CLIPS = 30  # and one whose picture is missing
ROWS = [
    {
        "id": f"r{i:02d}",
        "image": f"{i % 4}.png" if i != 5 else "missing.png",
        "prompt": f"prompt {i % 3}",
        "seed": i,
        "guidance_scale": 2 + i,
        "steps": 6 + i % 2,
    }
    for i in range(CLIPS + 1)
]
FLAGS = ("--batch_size=2",)

# Before any run: how many lines it adds before it is killed, and how many seconds later.
DRAW = np.random.default_rng(2310_12190)
LINES = DRAW.integers(0, 4, KILLS).tolist()
LATER = DRAW.uniform(0, 0.3, KILLS).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("jobs")
    bulk_jobs.pictures(place)
    bulk_jobs.table(place, ROWS)
    return place


@pytest.fixture(scope="module")
def checkpoint(folder):
    return bulk_jobs.weights(folder)


@pytest.fixture(scope="module")
def undisturbed(folder, checkpoint):
    """The folder of a job that nothing happened to, but for one picture that is missing."""
    process = bulk_jobs.start(folder / "table.jsonl", folder / "whole", checkpoint, *FLAGS)
    said, errors = bulk_jobs.finish(process, status=1)
    assert f"error: 1 of {CLIPS + 1} clips failed" in errors and "manifest.jsonl" in errors
    assert re.search(rf"{CLIPS} clips in .* clips/s, device busy .* %", said)
    return folder / "whole"


def noted(output_dir) -> int:
    """Whole lines in all parts of a manifest."""
    return sum(file.read_bytes().count(b"\n") for file in output_dir.glob("manifest*.jsonl"))


def wait_for(output_dir, count, process):
    deadline = time.monotonic() + 300
    while noted(output_dir) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same(output_dir, undisturbed):
    assert bulk_jobs.videos(output_dir) == bulk_jobs.videos(undisturbed)
    assert bulk_jobs.lines(output_dir) == bulk_jobs.lines(undisturbed)
    names = {file.name for file in output_dir.iterdir()}
    assert names == {file.name for file in undisturbed.iterdir()}


def test_kills_and_a_wish_to_stop_change_no_video_and_no_line(
    tmp_path, folder, checkpoint, undisturbed
):
    job = folder / "table.jsonl", tmp_path, checkpoint, *FLAGS
    for lines, later in zip(LINES, LATER, strict=True):
        process = bulk_jobs.start(*job)
        # The missing picture is noted again by every run that comes to it.
        wait_for(tmp_path, noted(tmp_path) + 1 + lines, process)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = bulk_jobs.start(*job)
    wait_for(tmp_path, noted(tmp_path) + 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = bulk_jobs.finish(process, status=143)
    assert "stopped as requested: run the same command to resume" in errors
    made = len(bulk_jobs.videos(tmp_path))
    assert 0 < made < CLIPS, "some runs came to a video, and none to the end"
    said, _ = bulk_jobs.finish(bulk_jobs.start(*job), status=1)
    assert f"{made} were there already" in said
    assert_same(tmp_path, undisturbed)


def shared(count: int, job: tuple, *flags: str, devices: int) -> list[str]:
    """Runs a job in several processes and returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    who = [
        (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}")
        for i in range(count)
    ]
    started = [bulk_jobs.start(*job, *flags, *one, devices=devices) for one in who]
    return [bulk_jobs.finish(process, status=1)[0] for process in started]


def test_two_processes_share_the_rows(tmp_path, folder, checkpoint, undisturbed):
    job = folder / "table.jsonl", tmp_path, checkpoint, *FLAGS
    said = shared(2, job, devices=1)
    made = [int(re.findall(r"process \d: (\d+) clips", one)[0]) for one in said]
    assert sum(made) == CLIPS and min(made) > 7
    (tmp_path / "summary-00001.json").unlink()
    assert_same(tmp_path, undisturbed)


def test_a_mesh_of_two_processes_makes_each_batch_together(
    tmp_path, folder, checkpoint, undisturbed
):
    few = bulk_jobs.table(folder, ROWS[:7], "few.jsonl")
    said = shared(2, (few, tmp_path, checkpoint), "--config.mesh.data=4", devices=2)
    assert all("6 clips in" in one for one in said)
    os.unlink(tmp_path / "summary-00001.json")
    assert set(bulk_jobs.videos(tmp_path)) == {f"{row['id']}.mp4" for row in ROWS[:7]} - {"r05.mp4"}
    states = [line["status"] for line in bulk_jobs.lines(tmp_path)]
    assert states == ["done"] * 5 + ["error", "done"]
