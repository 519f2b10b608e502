"""What a compiled program does on one device, counted from its optimised text.

XLA's own count (`compiled.cost_analysis()`) takes the body of a loop once, however often it runs,
and sees into no kernel. Here loops count as often as they run.
"""

import dataclasses
from collections.abc import Iterator

from dynamicrafter_jax.planning import kernels
from dynamicrafter_jax.planning.collectives import Collective, is_collective, read_collective
from dynamicrafter_jax.planning.kernels import Kernel
from dynamicrafter_jax.planning.text import Computation, Instruction, Program, parse
from dynamicrafter_jax.planning.traffic import Traffic
from dynamicrafter_jax.planning.trips import Trips


@dataclasses.dataclass(frozen=True)
class ProgramCounts:
    """What one device does when a program runs once.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and kernels, two for a
            multiplication and its addition; padding by which arrays were made to fit counts.
        bytes: Read from and written to HBM, each fusion reading its operands and writing its
            results once: an estimate, as caches and kernels that read twice are not known.
        collectives: What is sent, one entry for each place in the program.
        unknown_trips: Loops that count once because data decides how often they run, by name.
        kernels: Calls of kernels, one entry for each place in the program.
    """

    flops: int
    bytes: int
    collectives: tuple[Collective, ...]
    unknown_trips: tuple[str, ...]
    kernels: tuple[Kernel, ...]

    def sent(self, kind: str | None = None) -> int:
        """Returns the bytes that a device sends by collectives of one kind, or of all."""
        return sum(each.bytes for each in self.collectives if kind in (None, each.kind))

    @property
    def uncounted_kernels(self) -> tuple[str, ...]:
        """Names of kernels whose operations are not in `flops`, as nothing says how many."""
        return tuple(sorted({kernel.name for kernel in self.kernels if kernel.flops is None}))


def read_program(compiled_text: str) -> ProgramCounts:
    """Counts a compiled program, for CPU or TPU, in time linear in its text.

    Args:
        compiled_text: `compiled.as_text()`.

    Raises:
        ValueError: If it is no such text.
    """
    program = parse(compiled_text)
    return _Reader(program).counts(program.computations[program.entry])


_NOTHING = ProgramCounts(0, 0, (), (), ())
_NOTHING_DONE = {"parameter", "get-tuple-element", "constant", "tuple", "bitcast"}


class _Reader:
    """Counts computations, each once."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._trips = Trips(program)
        self._traffic = Traffic(program)
        self._known: dict[tuple[str, bool], ProgramCounts] = {}

    def counts(self, computation: Computation, fused: bool = False) -> ProgramCounts:
        """Returns what one run of a computation does; inside a fusion nothing touches HBM."""
        key = computation.name, fused
        if key not in self._known:
            parts = [
                self._instruction(computation, instruction, fused)
                for instruction in computation.instructions.values()
            ]
            self._known[key] = _sum(parts)
        return self._known[key]

    def _instruction(
        self, computation: Computation, instruction: Instruction, fused: bool
    ) -> ProgramCounts:
        opcode = instruction.opcode
        if opcode in _NOTHING_DONE:
            return _NOTHING
        traffic = 0 if fused else self._traffic.bytes(computation, instruction)
        flops, found_kernels, found = 0, (), ()
        if opcode == "dot":
            flops = kernels.dot_flops(instruction, computation.operand_shapes(instruction))
        elif opcode == "convolution":
            flops = kernels.convolution_flops(instruction, computation.operand_shapes(instruction))
        elif opcode == "custom-call":
            operands = computation.operand_shapes(instruction)
            if kernel := kernels.kernel_of(instruction, operands):
                flops, found_kernels = kernel.flops or 0, (kernel,)
        elif is_collective(instruction) and not (fused and _goes_on(computation, instruction)):
            collective = read_collective(
                instruction,
                computation.operand_shapes(instruction),
                self._program.devices,
                scatters=fused and computation.name.startswith("all-reduce-scatter"),
            )
            found = (collective,)
        own = ProgramCounts(flops, traffic, found, (), found_kernels)
        return _sum([own, *self._inner(computation, instruction, fused)])

    def _inner(
        self, computation: Computation, instruction: Instruction, fused: bool
    ) -> Iterator[ProgramCounts]:
        """Yields the counts of what an instruction calls."""
        match instruction.opcode:
            case "while":
                trips = self._trips.count(computation, instruction)
                body = self._called(instruction, "body", fused)
                if trips is None:
                    unknown = (*body.unknown_trips, instruction.name)
                    yield dataclasses.replace(body, unknown_trips=unknown)
                else:
                    yield _repeated(body, trips)
            case "conditional":
                branches = [
                    self.counts(self._program.computations[name], fused)
                    for name in instruction.branches()
                ]
                yield max(branches, key=lambda branch: (branch.flops, branch.bytes))
            case "fusion":
                yield self._called(instruction, "calls", True)
            case "call":
                yield self._called(instruction, "to_apply", fused)
            case "async-start":
                yield self._called(instruction, "calls", fused)

    def _called(self, instruction: Instruction, attribute: str, fused: bool) -> ProgramCounts:
        name = instruction.called(attribute)
        if name is None:
            return _NOTHING
        return self.counts(self._program.computations[name], fused)


def _goes_on(computation: Computation, collective: Instruction) -> bool:
    """Whether a fusion only goes on with a collective that another one started.

    To overlap a collective with products, the TPU compiler writes it three times: in the fusion
    that starts it, in that with the products, and in that which waits for it.
    """
    if "chain_id=" not in collective.attributes:
        return False
    return not any(
        "AsyncCollectiveStart" in instruction.attributes
        for instruction in computation.users.get(collective.name, ())
    )


def _repeated(counts: ProgramCounts, times: int) -> ProgramCounts:
    return ProgramCounts(
        counts.flops * times,
        counts.bytes * times,
        tuple(each.repeated(times) for each in counts.collectives),
        counts.unknown_trips,
        tuple(each.repeated(times) for each in counts.kernels),
    )


def _sum(parts: list[ProgramCounts]) -> ProgramCounts:
    if len(parts) == 1:
        return parts[0]
    return ProgramCounts(
        sum(part.flops for part in parts),
        sum(part.bytes for part in parts),
        tuple(each for part in parts for each in part.collectives),
        tuple(dict.fromkeys(name for part in parts for name in part.unknown_trips)),
        tuple(each for part in parts for each in part.kernels),
    )
