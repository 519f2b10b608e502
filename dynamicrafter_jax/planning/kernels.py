"""Arithmetic of instructions: products, convolutions and kernels that XLA calls but can't see into.

A multiplication and its addition are two operations, as in `training.throughput.product_flops`.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from dynamicrafter_jax.planning.text import Instruction, Shape

# Matrix products, of 2 l m d operations a head each, in jax's splash attention kernels.
_SPLASH = {"fwd": 2, "dq": 3, "dkv": 4}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of a kernel.

    Attributes:
        name: Its own.
        trips: How often it runs.
        flops: Of all trips; None where nothing says.
    """

    name: str
    trips: int
    flops: int | None

    def repeated(self, times: int) -> "Kernel":
        """Returns it in a loop of so many trips."""
        flops = None if self.flops is None else self.flops * times
        return Kernel(self.name, self.trips * times, flops)


def dot_flops(instruction: Instruction, operands: list[Shape]) -> int:
    """Counts a `dot`: twice its results times the length of what is summed."""
    contracted = _integers(r"\blhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    length = math.prod(operands[0].dims[axis] for axis in contracted)
    return 2 * math.prod(instruction.shapes[0].dims) * length


def convolution_flops(instruction: Instruction, operands: list[Shape]) -> int:
    """Counts a `convolution`: twice its results times the taps and input features of each.

    A tap of a border, of fewer rows than the window has, counts, as it does in a count from shapes
    alone; zeros between the rows of a dilated operand do not, nor does padding as wide as the
    window: the TPU compiler writes a product's batch and row axes as windows of that kind, of
    which a single tap falls on the operand.
    """
    labels = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, f"a convolution without labels: {instruction.name}"
    left, right, out = labels.groups()
    window = re.search(r"\bwindow=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window.group(1).split()) if window else {}
    result, kernel = instruction.shapes[0].dims, operands[1].dims
    total = 2 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for axis in range(len(left) - 2):

        def of(name: str, default: str, axis: int = axis) -> str:
            return fields[name].split("x")[axis] if name in fields else default

        low, high = map(int, of("pad", "0_0").split("_"))
        total *= _taps(
            operands[0].dims[left.index(str(axis))],
            result[out.index(str(axis))],
            int(of("size", "1")),
            int(of("stride", "1")),
            low,
            high,
            int(of("lhs_dilate", "1")),
            int(of("rhs_dilate", "1")),
        )
    return total


@functools.cache
def _taps(
    rows: int, results: int, size: int, stride: int, low: int, high: int, spread: int, dilation: int
) -> int:
    """Counts the taps of all results along an axis."""
    if spread == 1 and max(low, 0) + max(high, 0) < max(size, 2) * dilation:
        return results * size
    first = np.arange(results)[:, None] * stride - low
    at = first + np.arange(size) * dilation
    return int(((at >= 0) & (at < (rows - 1) * spread + 1) & (at % spread == 0)).sum())


def kernel_of(instruction: Instruction, operands: list[Shape]) -> Kernel | None:
    """Returns what a `custom-call` does, or None for one that computes nothing.

    - jax's splash attention, by the shapes of query (..., l, d) and key (..., m, d), lengths as
      they are padded: 4 l m d a head forward, and backward 6 for the query and 8 for key and value;
    - a library's matrix product, by its shapes;
    - any other kernel for TPU by the cost that it declares, which the compiler's own state too.
    """
    target = re.search(r'\bcustom_call_target="([^"]*)"', instruction.attributes)
    name = target.group(1) if target else ""
    if name.endswith("$matmul"):
        return Kernel(name, 1, _matmul_flops(instruction, operands))
    if name != "tpu_custom_call":
        return None
    called = re.sub(r"\.\d+$", "", instruction.name)
    op_name = re.search(r'\bop_name="([^"]*)"', instruction.attributes)
    described = f"{called} {op_name.group(1) if op_name else ''}"
    if found := re.search(r"splash_m[hq]a_(fwd|dq|dkv)", described):
        query, key, *_ = (shape for shape in operands if shape.dtype[0] in "bf")
        # Tokens may be the last axis of what it reads, but never of what it makes.
        made = (shape.dims for shape in instruction.shapes)
        tokens = next(dims[-2] for dims in made if dims[:-2] == query.dims[:-2])
        others = query if found.group(1) == "dkv" else key
        flops = 2 * _SPLASH[found.group(1)] * math.prod(others.dims) * tokens
        return Kernel(found.group(), 1, flops)
    cost = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    return Kernel(called, 1, int(cost.group(1)) if cost else None)


def _matmul_flops(instruction: Instruction, operands: list[Shape]) -> int:
    """Counts (..., l, k) times (..., k, m) without knowing which operand is transposed."""
    *batch, _, _ = result = instruction.shapes[0].dims
    sides = math.prod(operands[0].dims) * math.prod(operands[1].dims) // math.prod(result)
    return 2 * math.prod(result) * math.isqrt(sides // math.prod(batch))


def _integers(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    return tuple(int(number) for number in found.group(1).split(",") if number) if found else ()
