"""How much of a chip's HBM instructions read and write, one fusion being one reader."""

from dynamicrafter_jax.planning.collectives import is_collective
from dynamicrafter_jax.planning.text import Computation, Instruction, Program, Shape

_FREE = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "while",
    "conditional",
    "call",
    "async-start",
    "async-update",
    "after-all",
    "opt-barrier",
    "add-dependency",
    "domain",
    "partition-id",
    "replica-id",
}
_SLICES = {"slice", "dynamic-slice", "gather"}


class Traffic:
    """Counts bytes of HBM, with the computations of fusions looked into once."""

    def __init__(self, program: Program) -> None:
        """Takes the program that instructions are of."""
        self._program = program
        self._reads: dict[tuple[str, int], int | None] = {}

    def bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Returns what an instruction outside of fusions reads and writes.

        All operands and results, but of a slice what it takes, and of an update in place what it
        puts in. What lies in a chip's own memory (VMEM) costs nothing until it is copied.
        """
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        operands = computation.operand_shapes(instruction)
        written = _hbm(instruction.shapes)
        if opcode == "fusion":
            return self._fusion(computation, instruction)
        if opcode in _SLICES:
            return 2 * written + _hbm(operands[1:])
        if opcode == "dynamic-update-slice":
            return 2 * _hbm(operands[1:])
        if opcode == "scatter":
            return 3 * _hbm(operands[2:]) + _hbm(operands[1:2])
        if opcode in ("copy-start", "all-gather-start", "collective-permute-start"):
            return written  # which repeats the operands beside the results
        return _hbm(operands) + written

    def _fusion(self, computation: Computation, fusion: Instruction) -> int:
        inner = self._program.computations[fusion.called("calls") or ""]
        total = self._written(inner, inner.root)
        for index, operand in enumerate(fusion.operands):
            source = computation.instructions.get(operand)
            if source is None:
                continue
            whole = _hbm(source.shapes)
            part = self._read(inner, index) if whole else 0
            total += whole if part is None else min(part, whole)
        return total

    def _written(self, inner: Computation, name: str) -> int:
        """Returns what a fusion's result takes to write."""
        root = inner.instructions[name]
        match root.opcode:
            case "tuple":
                return sum(self._written(inner, operand) for operand in set(root.operands))
            case "parameter":  # handed through
                return 0
            case "bitcast":
                return self._written(inner, root.operands[0]) if _hbm(root.shapes) else 0
            case "dynamic-update-slice":
                update = inner.instructions[root.operands[1]]
                elements = sum(shape.nbytes for shape in update.shapes)
                return elements if _hbm(root.shapes) else 0
            case "custom-call" if "AsyncCollective" in root.attributes:
                return 0  # the collective inside is counted as one
        return _hbm(root.shapes)

    def _read(self, inner: Computation, index: int) -> int | None:
        """Returns how many bytes a fusion reads of a parameter; None for all."""
        key = (inner.name, index)
        if key not in self._reads:
            name = inner.parameters.get(index)
            self._reads[key] = None if name is None else self._read_of(inner, name)
        return self._reads[key]

    def _read_of(self, inner: Computation, name: str) -> int | None:
        total = 0
        for user in inner.users.get(name, ()):
            first = user.operands[0] == name
            if user.opcode in _SLICES and first:
                total += sum(shape.nbytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # in place
            elif user.opcode == "tuple" or is_collective(user) or user.opcode == "custom-call":
                continue  # handed through, or counted as what it is
            elif user.opcode == "bitcast":
                part = self._read_of(inner, user.name)
                if part is None:
                    return None
                total += part
            elif user.opcode == "fusion":
                called = self._program.computations[user.called("calls") or ""]
                for index, operand in enumerate(user.operands):
                    if operand == name:
                        part = self._read(called, index)
                        if part is None:
                            return None
                        total += part
            else:
                return None
        return total


def _hbm(shapes: list[Shape] | tuple[Shape, ...]) -> int:
    return sum(shape.hbm_bytes for shape in shapes)
