"""Counts what a compiled program does on one device, from its optimised text.

The compiler's own count (`compiled.cost_analysis()`) counts the body of a loop once, however often
it runs, and does not look into attention kernels: it finds a quarter of what the 1024 model's
decoder does. It does not count collectives at all.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Matrix products, each 2 l m d operations per head, in JAX's splash attention kernels.
_SPLASH = {"fwd": 2, "dq": 3, "dkv": 4}

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)")
_TYPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One place where a program communicates.

    Attributes:
        kind: One of `KINDS`.
        results: Shapes of the arrays that each device receives.
        trips: How often it runs.
        bytes: Bytes that each device sends, over all trips. If each of n devices contributes s
            bytes, that is (n - 1) s to gather them, (n - 1) / n s to scatter or exchange them,
            twice that to reduce them, and s to permute them.
    """

    kind: str
    results: tuple[tuple[int, ...], ...]
    trips: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class ProgramCounts:
    """What one device does when a program runs once.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and splash attention; a
            multiply-add counts as two, and work on padding is included.
        collectives: The program's collectives, one for each place in it.
        unknown_trips: Names of loops that are counted once because it is unknown how often they
            run.
    """

    flops: int
    collectives: tuple[Collective, ...]
    unknown_trips: tuple[str, ...]


def read_program(compiled_text: str) -> ProgramCounts:
    """Counts a compiled program, for CPU or TPU, in time linear in its text.

    Args:
        compiled_text: `compiled.as_text()`.

    Raises:
        ValueError: It is not such a text.
    """
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in compiled_text.split("\n"):
        if line == "}":
            current = None
        elif not line[:1].isspace() and line.endswith("{") and " -> " in line:
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current = computations[name] = _Computation(name)
            entry = name if line.startswith("ENTRY ") else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            is_root, name, kind, opcode, inside, attributes = found.groups()
            current.instructions[name] = _Instruction(name, opcode, kind, inside, attributes)
            current.root = name if is_root else current.root
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    devices = re.search(r"\bnum_partitions=(\d+)", compiled_text.split("\n", 1)[0])
    found = list(_Reader(computations, int(devices[1]) if devices else 1).run(entry, 1))
    return ProgramCounts(
        _flops(found),
        tuple(each for each in found if isinstance(each, Collective)),
        tuple(each for each in found if isinstance(each, str)),
    )


def _flops(found: Iterable[object]) -> int:
    return sum(each for each in found if isinstance(each, int))


class _Shape(NamedTuple):
    """An array: its type as XLA writes it, such as "bf16", and the sizes of its axes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # the first number, as in f8e4m3
        size = 8 if self.dtype == "pred" else int(bits[0]) if bits else 0
        return math.prod(self.dims) * size // 8


@functools.lru_cache(2**16)  # a program has few types, each many times
def _shapes(kind: str) -> tuple[_Shape, ...]:
    """Returns the arrays in a type; nested tuples are flattened."""
    return tuple(
        _Shape(dtype, tuple(int(size.strip("<=")) for size in dims.split(",") if size))
        for dtype, dims in _TYPE.findall(kind)
    )


class _Instruction(NamedTuple):
    """A line of a program: `name = kind opcode(inside)attributes`."""

    name: str
    opcode: str
    kind: str
    inside: str
    attributes: str

    @property
    def shapes(self) -> tuple[_Shape, ...]:
        return _shapes(self.kind)

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.inside)

    def attribute(self, name: str) -> str:
        """Returns the number or computation name of an attribute; "" if it is absent."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass
class _Computation:
    """A function of a program, and the instruction whose value it returns."""

    name: str
    instructions: dict[str, _Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def operand_shapes(self, instruction: _Instruction) -> list[_Shape]:
        """Returns the arrays that an instruction reads."""
        read = (self.instructions[name] for name in instruction.operands)
        return [shape for each in read for shape in each.shapes]

    def source(self, name: str) -> _Instruction:
        """Returns the instruction that computes a value, looking through copies."""
        found = self.instructions[name]
        return self.source(found.operands[0]) if found.opcode == "copy" else found


class _Reader:
    """Follows a program as it runs."""

    def __init__(self, computations: dict[str, _Computation], devices: int) -> None:
        self._computations = computations
        self._devices = devices

    def run(self, name: str, times: int, fused: bool = False) -> Iterator[int | Collective | str]:
        """Yields operations and collectives of a computation, and loops without known trips.

        Args:
            name: Name of the computation.
            times: How often it runs.
            fused: Whether it runs as a fusion.
        """
        computation = self._computations[name]
        for each in computation.instructions.values():
            match each.opcode:
                case "dot" | "convolution" | "custom-call":
                    count = {"dot": _dot, "convolution": _convolution, "custom-call": _splash}
                    yield times * count[each.opcode](each, computation.operand_shapes(each))
                case "fusion":
                    yield from self.run(each.attribute("calls"), times, True)
                case "async-start":
                    yield from self.run(each.attribute("calls"), times, fused)
                case "call":
                    yield from self.run(each.attribute("to_apply"), times, fused)
                case "conditional":
                    called = _NAME.findall(each.attributes)
                    branches = [name for name in called if name in self._computations]
                    yield from max((list(self.run(name, times)) for name in branches), key=_flops)
                case "while":
                    trips = self._trips(computation, each)
                    if trips is None:
                        yield each.name
                    body = each.attribute("body")
                    yield from self.run(body, times if trips is None else times * trips, fused)
                case opcode if (kind := opcode.removesuffix("-start")) in KINDS:
                    if fused and name.startswith("all-reduce-scatter"):
                        kind = "reduce-scatter"  # its first half, as the TPU compiler writes it
                    if not (fused and _continues(computation, each)):
                        yield _collective(kind, each, self._devices, times)

    def _trips(self, computation: _Computation, loop: _Instruction) -> int | None:
        """Returns how often a loop runs, as stated by the compiler or else from its counter.

        The TPU compiler does not state it. In loops written by JAX, the body adds a constant to the
        counter, and the condition compares it with another. Returns None for any other loop.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        body, condition = (
            self._computations[loop.attribute(part)] for part in ("body", "condition")
        )
        compared, after_each = condition.source(condition.root), body.source(body.root)
        at_first = computation.source(loop.operands[0])
        opcodes = compared.opcode, after_each.opcode, at_first.opcode
        if opcodes != ("compare", "tuple", "tuple") or compared.attribute("direction") != "LT":
            return None
        counter, end = (condition.source(name) for name in compared.operands)
        if counter.opcode != "get-tuple-element" or counter.kind[0] not in "su":  # an integer
            return None
        place = int(counter.attribute("index"))
        start = computation.source(at_first.operands[place])
        after = body.source(after_each.operands[place])
        if after.opcode != "add":
            return None
        before, step = (body.source(name) for name in after.operands)
        opcodes = {each.opcode for each in (start, step, end)}
        if opcodes != {"constant"} or before.attribute("index") != str(place):
            return None
        return max(0, math.ceil((int(end.inside) - int(start.inside)) / int(step.inside)))


def _dot(instruction: _Instruction, operands: list[_Shape]) -> int:
    """Returns twice the number of results times the number of terms in each sum."""
    contracted = re.search(r"\blhs_contracting_dims=\{([\d,]+)\}", instruction.attributes)
    axes = map(int, contracted[1].split(",")) if contracted else ()
    return 2 * math.prod((*instruction.shapes[0].dims, *(operands[0].dims[axis] for axis in axes)))


def _convolution(instruction: _Instruction, operands: list[_Shape]) -> int:
    """Returns twice the number of results times the taps and input features of each.

    Taps on a border narrower than the window count, as they do in a count from shapes alone. Zeros
    between the rows of a dilated operand don't, nor does padding as wide as the window: the TPU
    compiler writes the batch and row axes of a product as such windows, in which a single tap falls
    on the operand.
    """
    labels = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, f"a convolution without labels: {instruction.name}"
    left, right, out = labels.groups()
    window = re.search(r"\bwindow=\{([^}]*)\}", instruction.attributes)
    given = dict(field.split("=") for field in window[1].split()) if window else {}

    def field(name: str, default: str) -> list[str]:
        return given[name].split("x") if name in given else [default] * (len(left) - 2)

    numbers = [field(name, "1") for name in ("size", "stride", "lhs_dilate", "rhs_dilate")]
    result, kernel = instruction.shapes[0].dims, operands[1].dims
    total = 2 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for axis, padding in enumerate(field("pad", "0_0")):
        rows = operands[0].dims[left.index(str(axis))]
        low, high = map(int, padding.split("_"))
        window_of_axis = [int(number[axis]) for number in numbers]
        total *= _taps(rows, result[out.index(str(axis))], low, high, *window_of_axis)
    return total


@functools.cache
def _taps(
    rows: int, results: int, low: int, high: int, size: int, stride: int, spread: int, dilation: int
) -> int:
    """Returns the number of taps along an axis, over all results."""
    if spread == 1 and max(low, 0) + max(high, 0) < max(size, 2) * dilation:
        return results * size
    first = np.arange(results)[:, None] * stride - low
    at = first + np.arange(size) * dilation
    return int(((at >= 0) & (at < (rows - 1) * spread + 1) & (at % spread == 0)).sum())


def _splash(instruction: _Instruction, operands: list[_Shape]) -> int:
    """Counts JAX's splash attention from query (..., l, d) and key (..., m, d); 0 if it is not.

    With padded lengths, a head takes 4 l m d operations forward; backward, it takes 6 l m d for the
    query and 8 l m d for key and value.
    """
    found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", instruction.name)
    if not found:
        return 0
    query, key, *_ = (shape.dims for shape in operands if shape.dtype[0] in "bf")
    # Tokens may be the last axis of its inputs, but never of its outputs.
    made = (shape.dims for shape in instruction.shapes)
    tokens = next(dims[-2] for dims in made if dims[:-2] == query[:-2])
    return 2 * _SPLASH[found[1]] * math.prod(query if found[1] == "dkv" else key) * tokens


def _collective(kind: str, instruction: _Instruction, devices: int, trips: int) -> Collective:
    results = instruction.shapes
    if instruction.opcode == "all-gather-start":  # its result is (operands, results)
        results = results[len(results) // 2 :]
    elif instruction.opcode == "collective-permute-start":  # (operand, result, contexts)
        results = results[1:2]
    n, size = _group_size(instruction.attributes, devices), sum(shape.nbytes for shape in results)
    if kind == "collective-permute":
        sent = size
    elif kind == "reduce-scatter" and instruction.opcode != "all-reduce":
        sent = (n - 1) * size  # each device gets a part
    else:
        sent = (2 if kind == "all-reduce" else 1) * (n - 1) * size // n
    return Collective(kind, tuple(shape.dims for shape in results), trips, sent * trips)


def _group_size(attributes: str, devices: int) -> int:
    """Returns the number of devices in a group, which XLA writes in several forms.

    They are lists, `{{0,1},{2,3}}`; a reshaped count, `[4,2]<=[8]`; axes of a mesh,
    `mesh['a'=2,'b'=4] {'b'}`, or parts of axes, `'b':(1)2`; or all devices, `{}`.
    """
    if listed := re.search(r"\breplica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"\breplica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if mesh := re.search(
        r"\breplica_groups=@?\w+\[([^\]]*)\](?:\([^)]*\))? ?\{([^}]*)\}", attributes
    ):
        sizes = dict(re.findall(r"['\"]([^'\"]+)['\"]=(\d+)", mesh[1]))
        parts = re.findall(r"['\"]([^'\"]+)['\"](?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return devices


def _continues(computation: _Computation, collective: _Instruction) -> bool:
    """Returns whether a fusion only continues a collective that another fusion started.

    To overlap a collective with products, the TPU compiler writes it three times: in the fusion
    that starts it, the fusion with the products, and the fusion that waits for it.
    """
    return "chain_id=" in collective.attributes and not any(
        "AsyncCollectiveStart" in user.attributes and collective.name in user.operands
        for user in computation.instructions.values()
    )
