"""What devices send each other in a program."""

import dataclasses
import math
import re

import numpy as np

from dynamicrafter_jax.planning.text import Instruction, Shape

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_KINDS = {kind + suffix: kind for kind in KINDS for suffix in ("", "-start")} | {
    "ragged-all-to-all": "all-to-all",
    "collective-broadcast": "all-gather",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One place where a program communicates.

    Attributes:
        kind: One of `KINDS`.
        operands: Shapes of what each device puts in.
        results: Shapes of what each device gets.
        dtype: Of the largest operand, such as "bf16".
        group: Devices of one group, as places in the mesh; the others are alike.
        trips: How often it runs.
        bytes: What each device sends, over all trips: of an operand of s bytes among n devices,
            (n - 1) s to gather it, (n - 1) / n s to scatter or exchange it, twice that to reduce
            it, s to permute it.
        name: The operation that it belongs to, as JAX names it.
    """

    kind: str
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    dtype: str
    group: tuple[int, ...]
    trips: int
    bytes: int
    name: str

    @property
    def group_size(self) -> int:
        """Devices of one group."""
        return len(self.group)

    @property
    def operand(self) -> tuple[int, ...]:
        """Shape of the largest operand."""
        return max(self.operands, key=math.prod, default=())

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the largest result."""
        return max(self.results, key=math.prod, default=())

    def repeated(self, times: int) -> "Collective":
        """Returns it in a loop of so many trips."""
        return dataclasses.replace(self, trips=self.trips * times, bytes=self.bytes * times)


def is_collective(instruction: Instruction) -> bool:
    """Whether devices communicate; the `-done` of an asynchronous one is not counted again."""
    return instruction.opcode in _KINDS


def read_collective(
    instruction: Instruction, operands: list[Shape], devices: int, *, scatters: bool = False
) -> Collective:
    """Returns what an instruction sends.

    Args:
        instruction: One that `is_collective`.
        operands: What it reads.
        devices: That run the program.
        scatters: Whether it is the first half of a reduce-scatter, as the TPU compiler writes it.
    """
    kind = "reduce-scatter" if scatters else _KINDS[instruction.opcode]
    results = instruction.shapes
    if instruction.opcode == "all-gather-start":  # makes (operands, results)
        results = results[len(operands) :]
    elif instruction.opcode == "collective-permute-start":  # (operand, result, contexts)
        results = results[1:2]
    group = read_group(instruction.attributes, devices)
    n, size = len(group), sum(shape.nbytes for shape in operands)
    sent = {
        "all-gather": (n - 1) * size,
        "reduce-scatter": (n - 1) * size // n,
        "all-reduce": 2 * (n - 1) * size // n,
        "all-to-all": (n - 1) * size // n,
        "collective-permute": size,
    }[kind]
    largest = max(operands, key=lambda shape: shape.nbytes, default=Shape("token", ()))
    name = re.search(r'\bop_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind,
        tuple(shape.dims for shape in operands),
        tuple(shape.dims for shape in results),
        largest.dtype,
        group,
        1,
        sent,
        name.group(1) if name else instruction.name,
    )


def read_group(attributes: str, devices: int) -> tuple[int, ...]:
    """Returns the first group of devices that communicate, in any of the forms that XLA writes.

    They are lists, `{{0,1},{2,3}}`; a reshaped count, `[4,2]<=[8]` or `[4,2]<=[2,4]T(1,0)`; axes
    of a mesh, `mesh['a'=2,'b'=4] {'b'}`, of which parts can be taken, `'b':(1)2`; and for a
    permutation pairs of sender and receiver, of which the first chain is returned.
    """
    if found := re.search(r"\bsource_target_pairs=\{\{([\d,{}\s]*)\}\}", attributes):
        places = [int(place) for place in re.findall(r"\d+", found.group(1))]
        following = dict(zip(places[::2], places[1::2], strict=True))
        chain = places[:1]
        while (after := following.get(chain[-1])) is not None and after not in chain:
            chain.append(after)
        return tuple(chain)
    if found := re.search(r"\breplica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, found.group(1).split(",")))
    form = r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(form, attributes):
        groups, reshaped, order = (_integers(part or "") for part in found.groups())
        places = np.arange(math.prod(reshaped)).reshape(reshaped)
        return tuple(map(int, places.transpose(order or None).reshape(groups)[0]))
    form = r"\breplica_groups=(?:@?\w+)\[([^\]]*)\](?:\([^)]*\))? ?\{([^}]*)\}"
    if found := re.search(form, attributes):
        return _of_mesh(found.group(1), found.group(2))
    return tuple(range(devices))


def _of_mesh(sizes: str, axes: str) -> tuple[int, ...]:
    """Returns the group of device 0 along some axes of a mesh, or parts of them."""
    shape = {name: int(size) for name, size in re.findall(r"['\"]([^'\"]+)['\"]=(\d+)", sizes)}
    stride, after = {}, 1
    for name, size in reversed(shape.items()):
        stride[name], after = after, after * size
    places = np.zeros(1, int)
    for name, before, part in re.findall(r"['\"]([^'\"]+)['\"](?::\((\d+)\)(\d+))?", axes):
        size = int(part) if part else shape[name]
        # A part of an axis: `before` comes outside it, and what is left of the axis inside.
        inside = shape[name] // (int(before) * size) if part else 1
        steps = np.arange(size) * inside * stride[name]
        places = (places[:, None] + steps).reshape(-1)
    return tuple(map(int, places))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
