"""Traces hold the chosen steps and never end a run."""

import gzip
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import storage

from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.training.profiling import Profiler


@pytest.fixture(scope="module")
def step():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(())).compile()

    def run(index, x):
        with jax.profiler.TraceAnnotation(f"step_{index}"):
            return compiled(x)

    return run


def train(step, profiler, steps) -> None:
    x = jnp.zeros(())
    for index in steps:
        profiler.before(index, x)
        x = step(index, x)


def traced(data: bytes) -> list[str]:
    """The steps in a trace."""
    events = json.loads(gzip.decompress(data))["traceEvents"]
    names = Counter(event["name"] for event in events if event.get("name", "").startswith("step_"))
    assert set(names.values()) <= {1}
    return sorted(names)


def traces(workdir: Path) -> list[list[str]]:
    return [traced(path.read_bytes()) for path in workdir.rglob("*.trace.json.gz")]


def test_the_chosen_steps_are_traced_once(tmp_path: Path, step):
    with Profiler(tmp_path, first=3, count=2) as profiler:
        train(step, profiler, range(8))
        train(step, profiler, range(8))
    assert traces(tmp_path / "profile") == [["step_3", "step_4"]]
    assert list((tmp_path / "profile" / "plugins" / "profile").iterdir())  # TensorBoard's layout


def test_a_run_that_ends_early_keeps_what_it_traced(tmp_path: Path, step):
    with pytest.raises(KeyboardInterrupt), Profiler(tmp_path, first=1, count=100) as profiler:
        train(step, profiler, range(3))
        raise KeyboardInterrupt
    assert traces(tmp_path) == [["step_1", "step_2"]]


def test_a_run_that_resumes_behind_the_steps_traces_nothing(tmp_path: Path, step):
    for first, enabled in ((3, True), (None, True), (9, False)):
        with Profiler(tmp_path, first=first, count=2, enabled=enabled) as profiler:
            train(step, profiler, range(6, 12))
    assert list(tmp_path.iterdir()) == []


def test_remote_runs_are_traced(monkeypatch: pytest.MonkeyPatch, step):
    stored = storage.memory_bucket(monkeypatch)
    with Profiler("gs://bucket/run", first=1, count=1) as profiler:
        train(step, profiler, range(3))
    (trace,) = (path for path in stored if path.endswith(".trace.json.gz"))
    assert "/run/profile/plugins/profile/" in trace and traced(files.read_bytes(trace)) == [
        "step_1"
    ]


def test_what_goes_wrong_is_said_and_ends_nothing(tmp_path: Path, step):
    other = tmp_path / "other"
    jax.profiler.start_trace(str(other))
    try:
        with pytest.warns(UserWarning, match=r"no profiler trace: .*already"):
            train(step, Profiler(tmp_path / "run", first=1, count=1), range(3))
    finally:
        jax.profiler.stop_trace()
    (tmp_path / "run").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"no profiler trace: .*can't be written"):
        train(step, Profiler(tmp_path / "run", first=1, count=1), range(3))
