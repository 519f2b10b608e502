"""Compiling a program once: what the compiler made of it is kept, and counted when it is asked for.

What is kept is keyed by a hash of the program, the topology, the effort and the versions of jax
and libtpu, so that asking again costs only tracing and lowering.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import pickle
import time
from collections.abc import Iterator

import jax
from etils import epath
from jax.experimental import serialize_executable

from dynamicrafter_jax.planning.chips import Topology, compiler_version
from dynamicrafter_jax.planning.hlo import ProgramCounts, read_program
from dynamicrafter_jax.planning.programs import PlannedProgram
from dynamicrafter_jax.runtime import files

EFFORTS = {"low": -1.0, "default": 0.0}
"""What `--effort` sets of the compiler: how long it looks for a faster program, and a smaller."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: What the program is given.
        results: What it makes, without what takes the place of an argument.
        temporaries: What it holds on the way, at the most.
        code: The program itself.
    """

    arguments: int
    results: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.results + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program.

    Attributes:
        name: The program's.
        held: Bytes of its arguments on a device, by what they are.
        beside: Bytes of parameters that it does not read.
        memory: None where it was refused.
        counts: None where it was refused.
        refusal: What the compiler said, where it ran out of memory.
        seconds: That it took.
    """

    name: str
    held: dict[str, int]
    beside: int
    memory: Memory | None
    counts: ProgramCounts | None
    refusal: str | None
    seconds: float


def default_cache() -> epath.Path:
    """Where results are kept."""
    return epath.Path("~/.cache/dynamicrafter_jax/plans").expanduser()


def compiled(
    program: PlannedProgram,
    topology: Topology,
    effort: str,
    *,
    cache: epath.Path,
    save_executable: epath.Path | None = None,
) -> Compiled:
    """Compiles a program, or finds what was made of it before.

    Args:
        program: To compile.
        topology: What for.
        effort: One of `EFFORTS`.
        cache: Folder of results, as `default_cache()`.
        save_executable: Folder for the executable, which is then compiled anew.
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
    if facts["refusal"]:
        memory = counts = None
    else:
        memory = Memory(**facts["memory"])
        counts = read_program(gzip.decompress(text_file.read_bytes()).decode())
    return Compiled(
        program.name,
        program.held,
        program.beside,
        memory,
        counts,
        facts["refusal"],
        facts["seconds"],
    )


def _compile(
    program: PlannedProgram, effort: str, save_executable: epath.Path | None
) -> tuple[dict, str]:
    """Returns what is kept of a program, and its optimised text."""
    started = time.perf_counter()
    with _compiler_settings(effort):
        try:
            made = program.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal = " ".join(str(error).split())[:2000]
            seconds = time.perf_counter() - started
            return {"refusal": refusal, "seconds": seconds}, ""
    seconds = time.perf_counter() - started
    if save_executable is not None:
        path = save_executable / f"{program.name.replace(' ', '_')}.pickle"
        files.write_bytes(path, pickle.dumps(serialize_executable.serialize(made)))
    stats, text = made.memory_analysis(), made.as_text()
    assert stats is not None and text is not None, "this compiler does not tell what it made"
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    facts = {"refusal": None, "seconds": seconds, "memory": dataclasses.asdict(memory)}
    return facts, text


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
