"""What is kept of a compilation, and what of one that the compiler refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.experimental import serialize_executable

from dynamicrafter_jax.planning import results
from dynamicrafter_jax.planning.chips import parse_topology
from dynamicrafter_jax.planning.programs import PlannedProgram

TOPOLOGY = parse_topology("v5e:1x1")


def planned(size: int = 8) -> PlannedProgram:
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
    lowered = jax.jit(lambda x, y: x @ y).lower(matrix, matrix)
    return PlannedProgram("product", lowered, {"parameters": 4 * size * size}, 7)


class Counting:
    """A lowered program that counts how often it is compiled."""

    def __init__(self, lowered: Any, error: Exception | None = None) -> None:
        self._lowered, self._error = lowered, error
        self.times = 0

    def as_text(self) -> str:
        return self._lowered.as_text()

    def compile(self) -> Any:
        self.times += 1
        if self._error:
            raise self._error
        return self._lowered.compile()


def test_a_program_is_compiled_once_for_a_topology_and_effort(tmp_path: Path):
    cache = epath.Path(tmp_path)
    counted: Any = Counting(planned().lowered)
    program = planned()._replace(lowered=counted)
    first = results.program_report(program, TOPOLOGY, "low", cache=cache)
    assert results.program_report(program, TOPOLOGY, "low", cache=cache) == first
    assert counted.times == 1
    results.program_report(program, TOPOLOGY, "default", cache=cache)
    results.program_report(program, parse_topology("v6e:1x1"), "low", cache=cache)
    assert counted.times == 3
    assert first["flops_a_device"] == first["flops"] == 2 * 8**3
    memory = first["memory_bytes"]
    assert (memory["parameters"], memory["other arguments"]) == (256, 256)
    assert memory["results"] == 4 * 8 * 8 and memory["parameters beside"] == 7
    assert memory["total"] == sum(memory.values()) - memory["total"]
    assert first["fits"] and not first["collectives"]


def test_what_the_compiler_refuses_for_its_size_is_kept_too(tmp_path: Path):
    words = "RESOURCE_EXHAUSTED: Ran out of memory on HBM,\n the total (20.00G) exceeds it"
    counted: Any = Counting(planned().lowered, jax.errors.JaxRuntimeError(words))
    program = planned()._replace(lowered=counted)
    for _ in range(2):
        found = results.program_report(program, TOPOLOGY, "low", cache=epath.Path(tmp_path))
        assert found["refusal"] == " ".join(words.split())
        assert found["held_bytes"] == {"parameters": 256} and not found["fits"]
    assert counted.times == 1


def test_other_errors_of_the_compiler_are_not_kept(tmp_path: Path):
    counted: Any = Counting(planned().lowered, jax.errors.JaxRuntimeError("INTERNAL: broken"))
    program = planned()._replace(lowered=counted)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        results.program_report(program, TOPOLOGY, "low", cache=epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_efforts_are_set_for_the_compilation_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
    seen = []
    counted: Any = Counting(planned().lowered)
    compile_it = counted.compile
    monkeypatch.setattr(
        counted,
        "compile",
        lambda: seen.append([getattr(jax.config, name) for name in names]) or compile_it(),
    )
    results.program_report(
        planned()._replace(lowered=counted), TOPOLOGY, "low", cache=epath.Path(tmp_path)
    )
    assert seen == [[-1.0, -1.0]]
    assert [getattr(jax.config, name) for name in names] == [0.0, 0.0]


def test_a_saved_executable_runs(tmp_path: Path):
    folder = epath.Path(tmp_path)
    program = planned(4)
    results.program_report(
        program, TOPOLOGY, "low", cache=folder / "cache", save_executable=folder / "saved"
    )
    saved = pickle.loads((folder / "saved" / "product.pickle").read_bytes())
    run = serialize_executable.deserialize_and_load(*saved, execution_devices=jax.devices()[:1])
    x = jnp.arange(16.0).reshape(4, 4)
    assert jnp.array_equal(run(x, x), x @ x)
    assert json.loads(next((folder / "cache").glob("*.json")).read_text())["refusal"] is None
