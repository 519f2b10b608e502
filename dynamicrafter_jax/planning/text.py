"""The text of an optimised program (HLO), as instructions in computations."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0, "c64": 64}
_TYPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_MEMORY = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
        dtype: As XLA writes it, such as "bf16".
        dims: Sizes of its axes.
        layout: How it lies in memory, such as "1,0:T(8,128)S(1)".
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @functools.cached_property
    def hbm_bytes(self) -> int:
        """Bytes that it takes in HBM, tiles filled up; 0 where it lies in a chip's own memory."""
        memory = _MEMORY.search(self.layout)
        if memory and memory.group(1) != "0":
            return 0
        dims = list(self.dims)
        if tile := _TILE.search(self.layout):
            order = [int(axis) for axis in self.layout.split(":")[0].split(",") if axis]
            sizes = [int(size) for size in tile.group(1).split(",")]
            for axis, size in zip(order, reversed(sizes), strict=False):
                dims[axis] = math.ceil(dims[axis] / size) * size
        return math.prod(dims) * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: Unique in its computation.
        opcode: Such as "fusion".
        type: Of what it makes, as text.
        operands: Names of instructions.
        attributes: All that follows, as text.
        literal: What is between the brackets.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    literal: str

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays that it makes, in order; nested tuples are flat."""
        return _shapes(self.type)

    def called(self, attribute: str) -> str | None:
        """Returns the computation named by an attribute such as "calls"."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def branches(self) -> tuple[str, ...]:
        """Returns the computations that a conditional chooses of."""
        if found := re.search(r"\bbranch_computations=\{([^}]*)\}", self.attributes):
            return tuple(name.strip().lstrip("%") for name in found.group(1).split(","))
        chosen = (self.called("true_computation"), self.called("false_computation"))
        return tuple(name for name in chosen if name)


@dataclasses.dataclass
class Computation:
    """A function of a program.

    Attributes:
        name: Unique.
        instructions: By name, in order.
        root: Name of the one whose value it returns.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters, by number."""
        return {
            int(instruction.literal): name
            for name, instruction in self.instructions.items()
            if instruction.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Returns the arrays that an instruction reads."""
        return [
            shape
            for operand in instruction.operands
            if operand in self.instructions
            for shape in self.instructions[operand].shapes
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's computations.

    Attributes:
        computations: By name.
        entry: Name of the one that runs.
        devices: How many run it together.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Reads the text of a compiled program, in time linear in its length.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: If it is no such text.
    """
    computations: dict[str, Computation] = {}
    entry, devices = "", 1
    if found := re.search(r"\bnum_partitions=(\d+)", text[:100_000].split("\n", 1)[0]):
        devices = int(found.group(1))
    current: Computation | None = None
    for line in _whole_lines(text):
        if line.startswith("}"):
            current = None
        elif not line[:1].isspace() and line.rstrip().endswith("{") and " -> " in line:
            is_entry = line.startswith("ENTRY ")
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current = computations[name] = Computation(name, {})
            entry = name if is_entry else entry
        elif current is not None and (head := _INSTRUCTION.match(line)):
            instruction = _instruction(head.group(2), line[head.end() :])
            current.instructions[instruction.name] = instruction
            if head.group(1):
                current.root = instruction.name
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    return Program(computations, entry, devices)


def _whole_lines(text: str) -> Iterator[str]:
    """Yields lines; one that an attribute of several lines cuts is put together again."""
    pending: list[str] = []
    inside = False
    for line in text.split("\n"):
        starts = not line[:1].isspace() and line.endswith("{") and " -> " in line
        ends = line == "}"
        if starts or ends or (inside and _INSTRUCTION.match(line)):
            if pending:
                yield " ".join(pending)
            pending = [line]
            inside = not ends
        elif inside:
            pending.append(line)
    yield from pending


def _instruction(name: str, rest: str) -> Instruction:
    """Reads what follows "name = "."""
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:cut], rest[cut:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    operands = tuple(_NAME.findall(literal))
    return Instruction(name, rest[:opening], kind, operands, rest[closing + 1 :], literal)


def _closing(text: str, opening: int) -> int:
    """Returns where the bracket at `opening` closes."""
    depth, at = 1, opening + 1
    while depth:
        close = text.index(")", at)
        depth += text.count("(", at, close) - 1
        at = close + 1
    return at - 1


@functools.lru_cache(2**16)  # a program has few types, each many times
def _shapes(text: str) -> tuple[Shape, ...]:
    """Reads a type."""
    return tuple(
        Shape(dtype, tuple(int(size.strip("<=")) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in _TYPE.findall(text)
    )


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in _ITEM_BITS:
        return _ITEM_BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 0
