import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from data.samples import Failing, Noted, numbered, surroundings

from dynamicrafter_jax.data import loader
from dynamicrafter_jax.data.loader import Example, batches
from dynamicrafter_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def take(count: int, examples=numbered, **settings) -> list[Example]:
    with batches(examples, **settings) as iterator:
        return list(itertools.islice(iterator, count))


def assert_same(ours: Iterable[Example], others: Iterable[Example]) -> None:
    for batch, other in zip(ours, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_are_the_samples_of_their_numbers():
    ours = take(3, batch_size=4, rows=[0, 1, 2, 3], start=5)
    for k, batch in enumerate(ours, start=5):
        for row in range(4):
            sample = numbered(4 * k + row)
            assert sample.keys() == batch.keys()
            for name, array in sample.items():
                assert batch[name].dtype == array.dtype
                np.testing.assert_array_equal(batch[name][row], array)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same(workers):
    settings = {"batch_size": 4, "rows": [1, 3], "start": 5, "stop": 12}
    ours = take(99, workers=workers, prefetch=1, **settings)
    assert_same(ours, take(99, workers=0, **settings))
    assert [batch["index"][0] for batch in ours] == [4 * k + 1 for k in range(5, 12)]
    assert all(type(array) is np.ndarray for array in ours[0].values())
    assert multiprocessing.active_children() == []


def test_processes_supply_their_rows_of_the_same_batch():
    whole = take(3, batch_size=6, rows=range(6), start=2)
    parts = [take(3, batch_size=6, rows=rows, start=2) for rows in ([0, 1], [2, 3], [4, 5])]
    together = [
        {name: np.concatenate([part[k][name] for part in parts]) for name in whole[k]}
        for k in range(3)
    ]
    assert_same(together, whole)


def test_resuming_reads_nothing_of_earlier_batches(tmp_path):
    ours = take(2, Noted(tmp_path), batch_size=3, rows=[0, 2], start=1000)
    assert {int(file.name) for file in tmp_path.iterdir()} == {3000, 3002, 3003, 3005}
    assert_same(ours, take(1002, batch_size=3, rows=[0, 2])[1000:])


def test_workers_read_ahead_no_further_than_they_may(tmp_path):
    with batches(Noted(tmp_path), batch_size=1, rows=[0], workers=1, prefetch=2) as iterator:
        next(iterator)
        made = -1
        while made != (made := len(list(tmp_path.iterdir()))) or made < 4:
            time.sleep(0.3)
        assert made <= 1 + 2 * (2 + 1)


def test_workers_import_little_and_hear_no_signals_and_end_with_the_loop():
    for batch in batches(surroundings, batch_size=1, rows=[0], workers=1):
        (worker,) = multiprocessing.active_children()
        assert batch["process"] == [worker.pid]
        assert {name: bool(batch[name][0]) for name in ("jax", "pytest", "deaf")} == {
            "jax": False,
            "pytest": False,
            "deaf": True,
        }
        break
    assert multiprocessing.active_children() == []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not before & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize(
    ("how", "workers", "kind", "message"),
    [
        ("user", 2, UserError, "the table has no column 'name': add it"),
        ("odd", 0, RuntimeError, "sample 9 can't be made: Unpicklable: 3 frames are too few"),
        ("odd", 1, RuntimeError, "sample 9 can't be made: Unpicklable: 3 frames are too few"),
        ("killed", 1, RuntimeError, "exit code -9"),
    ],
)
def test_what_fails_is_raised_in_its_turn(how, workers, kind, message):
    iterator = batches(Failing(9, how), batch_size=2, rows=[0, 1], workers=workers, prefetch=1)
    for k in range(3):
        assert next(iterator)["index"].tolist() == [2 * k, 2 * k + 1]
    with pytest.raises(kind) as raised:
        list(itertools.islice(iterator, 2))
    assert message in str(raised.value)
    assert list(iterator) == []
    assert multiprocessing.active_children() == []


def test_a_worker_that_hangs_is_ended_all_the_same(monkeypatch):
    monkeypatch.setattr(loader, "_STOPPING_SECONDS", 0.5)
    iterator = batches(Failing(1, "hang"), batch_size=1, rows=[0], workers=1)
    next(iterator)
    started = time.monotonic()
    iterator.close()
    assert time.monotonic() - started < 5
    assert multiprocessing.active_children() == []
    assert list(iterator) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batches(workers):
    assert take(9, batch_size=2, rows=[0], start=7, stop=7, workers=workers) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "^data.workers is -1: give a number of processes, 0 for none$"),
        ({"prefetch": 0}, "^data.prefetch is 0: give a number of batches, 1 or more$"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        batches(numbered, batch_size=2, rows=[0], **settings)


@pytest.mark.parametrize("rows", [[], [2], [-1]])
def test_rows_that_a_batch_does_not_have(rows):
    with pytest.raises(ValueError, match="not positions in a batch of 2"):
        batches(numbered, batch_size=2, rows=rows)


# A program as ours are: it imports JAX, parses flags, handles signals and is guarded.
PROGRAM = """
import signal, sys
import jax
from absl import app
from data.samples import numbered
from dynamicrafter_jax.data.loader import batches

def main(argv):
    jax.devices()
    heard = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: heard.append(number))
    global iterator
    iterator = batches(numbered, batch_size=1, rows=[0], workers=2, prefetch=1)
    print("started", flush=True)
    while len(heard) < 2:
        next(iterator)
    for _ in range(9):
        batch = next(iterator)
    print("heard both", flush=True)
    if argv[1] == "wait":
        signal.pause()
    raise SystemExit("left open")

if __name__ == "__main__":
    app.run(main)
"""


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", ["wait", pytest.param("leave", marks=pytest.mark.slow)])
def test_workers_outlast_signals_but_not_their_program(tmp_path, end):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, "program.py", end],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout
    try:
        assert program.stdout.readline() == "started\n"
        # Ctrl-C and a scheduler's notice reach the whole group, here amid the workers' start.
        os.killpg(program.pid, signal.SIGINT)
        os.killpg(program.pid, signal.SIGTERM)
        assert program.stdout.readline() == "heard both\n"
        assert len(members(program.pid)) >= 3
        if end == "wait":
            program.kill()
        else:
            assert program.communicate(timeout=30)[1] == "left open\n"
            assert program.returncode == 1
        deadline = time.monotonic() + 20
        while members(program.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert members(program.pid) == []
    finally:
        for process in members(program.pid):
            os.kill(process, signal.SIGKILL)
        program.communicate()
