"""Compiles each program once: the result is kept, and counted each time it is needed.

Results are keyed by a hash of the program, the topology, the effort and the versions of JAX and
libtpu, so that planning again only costs tracing and lowering.
"""

import contextlib
import gzip
import hashlib
import json
import pickle
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental import serialize_executable

from dynamicrafter_jax.planning.chips import Topology, compiler_version
from dynamicrafter_jax.planning.hlo import KINDS, ProgramCounts, read_program
from dynamicrafter_jax.planning.programs import PlannedProgram
from dynamicrafter_jax.runtime import files

EFFORTS = {"low": -1.0, "default": 0.0}
"""The compiler settings for `--effort`: how hard it tries to make programs faster and smaller."""


def default_cache() -> epath.Path:
    """Returns the folder where results are kept by default."""
    return epath.Path("~/.cache/dynamicrafter_jax/plans").expanduser()


def program_report(
    program: PlannedProgram,
    topology: Topology,
    effort: str,
    *,
    cache: epath.Path,
    save_executable: epath.Path | None = None,
) -> dict[str, Any]:
    """Compiles a program, or finds the result of an earlier compilation.

    Args:
        program: The program to compile.
        topology: The chips to compile for; all of their devices run the program together.
        effort: One of `EFFORTS`.
        cache: Folder of results, such as `default_cache()`.
        save_executable: Folder for the executable, in which case the program is compiled again.

    Returns:
        What one device needs, as plain JSON types; if the compiler refuses the program because of
        its size, the compiler's message.
    """
    text = program.lowered.as_text()
    versions = [topology.name, effort, jax.__version__, compiler_version()]
    key = hashlib.sha256("\n".join([*versions, text]).encode()).hexdigest()[:24]
    facts_file, text_file = cache / f"{key}.json", cache / f"{key}.hlo.gz"
    if save_executable is not None or not facts_file.exists():
        facts, made = _compile(program, effort, save_executable)
        files.write_bytes(text_file, gzip.compress(made.encode(), 3))
        files.write_json(facts_file, facts)
    facts = json.loads(facts_file.read_text())
    refusal = facts["refusal"]
    report = {"name": program.name, "compile_seconds": round(facts["seconds"], 1)}
    if refusal:
        return report | {"fits": False, "refusal": refusal, "held_bytes": program.held}
    memory = facts["memory"]
    total = sum(memory.values()) + program.beside
    counts = read_program(gzip.decompress(text_file.read_bytes()).decode())
    return report | {
        "fits": total <= topology.chip.usable_hbm,
        "refusal": None,
        "memory_bytes": {
            **program.held,
            "parameters beside": program.beside,
            "other arguments": max(0, memory["arguments"] - sum(program.held.values())),
            "results": memory["results"],
            "temporaries": memory["temporaries"],
            "code": memory["code"],
            "total": total,
        },
        "flops_a_device": counts.flops,
        "flops": counts.flops * topology.devices,
        "collectives": _collectives(counts),
        "loops_counted_once": list(counts.unknown_trips),
    }


def _collectives(counts: ProgramCounts) -> dict[str, dict[str, int]]:
    """Returns how often a device communicates and what it sends, by kind."""
    found = {kind: [each for each in counts.collectives if each.kind == kind] for kind in KINDS}
    return {
        kind: {"count": sum(c.trips for c in each), "bytes": sum(c.bytes for c in each)}
        for kind, each in found.items()
        if each
    }


def _compile(
    program: PlannedProgram, effort: str, save_executable: epath.Path | None
) -> tuple[dict[str, Any], str]:
    """Returns the facts to keep about a program, and its optimised text."""
    started = time.perf_counter()
    with _compiler_settings(effort):
        try:
            made = program.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal = " ".join(str(error).split())[:2000]
            return {"refusal": refusal, "seconds": time.perf_counter() - started}, ""
    seconds = time.perf_counter() - started
    if save_executable is not None:
        path = save_executable / f"{program.name.replace(' ', '_')}.pickle"
        files.write_bytes(path, pickle.dumps(serialize_executable.serialize(made)))
    stats, text = made.memory_analysis(), made.as_text()
    assert stats is not None and text is not None, "this compiler does not tell what it made"
    memory = {
        "arguments": stats.argument_size_in_bytes,
        # Without results that reuse the memory of an argument.
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {"refusal": None, "seconds": seconds, "memory": memory}, text


@contextlib.contextmanager
def _compiler_settings(effort: str) -> Iterator[None]:
    names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        jax.config.update(name, EFFORTS[effort])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
