"""TPU chips and their topologies. This is the only module that uses libtpu.

Figures are those on the maker's pages, https://cloud.google.com/tpu/docs/ (v4, v5e, v5p, v6e,
tpu7x), per *device*, which is what JAX counts and what a program is compiled for. A device is a
chip, except for v7x, whose chips are two devices, each with half of everything. (A v4 chip also has
two cores, but JAX treats it as one device.)
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from dynamicrafter_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip, with the memory of one device.

    Attributes:
        name: Name that users write.
        compiler_name: Name that the compiler uses.
        hbm: Memory of a device, in bytes.
        usable_hbm: The part that the compiler gives to a program; the rest is reserved.
        dimensions: Number of dimensions of a slice.
        cores: Devices per chip.
        options: What the compiler needs to know about a topology besides its name.
    """

    name: str
    compiler_name: str
    hbm: float
    usable_hbm: float
    dimensions: int
    cores: int = 1
    options: tuple[tuple[str, str], ...] = ()


_GIB = 2.0**30
_MEGACORE = (("chip_config_name", "megacore"),)

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "v4", 32 * _GIB, 30.75 * _GIB, dimensions=3, options=_MEGACORE),
        Chip("v5e", "v5e", 16 * _GIB, 15.75 * _GIB, dimensions=2),
        Chip("v5p", "v5p", 96 * _GIB, 95.74 * _GIB, dimensions=3),
        Chip("v6e", "v6e", 32 * _GIB, 31.25 * _GIB, dimensions=2),
        Chip("v7x", "tpu7x", 96 * _GIB, 94.75 * _GIB, dimensions=3, cores=2),
    )
}
"""The chips that can be planned for."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices of chips.

    Attributes:
        chip: The kind of chip.
        shape: Chips along each dimension of a slice.
        slices: Number of slices.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name that `parse_topology` reads."""
        grid = "x".join(map(str, self.shape))
        several = f"{self.slices}*" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{grid}"

    @property
    def devices(self) -> int:
        """Number of JAX devices in all slices."""
        return math.prod(self.shape) * self.chip.cores * self.slices


def parse_topology(name: str) -> Topology:
    """Returns the topology with a name.

    A name gives a slice's shape in chips, as in "v5e:4x4" or "v5p:2x2x2". For v5e and v6e, it may
    give the number of chips instead, as in "v5e-16", for the most compact shape; for other chips
    such names count cores, and are refused. A number in front gives several slices, as in
    "2*v5e:4x4".

    Raises:
        UserError: The name has another form, or the chip is unknown.
    """
    found = re.fullmatch(
        r"(?:([1-9]\d*)\*)?(?:tpu-?)?(v?\d+\w*?)(?::([\dx]+)|-([1-9]\d*))", name.lower()
    )
    if not found:
        raise UserError(
            f"--topology is {name!r}: give a chip and a shape, such as v5e:4x4, or a number of "
            f"chips, such as v5e-16; known chips are {', '.join(CHIPS)}"
        )
    slices, kind, grid, number = found.groups()
    kind = {"7x": "v7x", "v5litepod": "v5e"}.get(kind, kind)
    if kind not in CHIPS:
        raise UserError(f"there is no chip {kind!r}: choose from {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    example = f"{kind}:{'x'.join('4' * chip.dimensions)}"
    if number:
        if chip.dimensions != 2:
            raise UserError(
                f"{name!r}: give the shape in chips, such as {example}; {kind}-N counts cores"
            )
        shape = _compact(int(number))
    else:
        shape = tuple(int(size) for size in grid.split("x") if size)
    if len(shape) != chip.dimensions or math.prod(shape) < 1:
        raise UserError(f"{name!r}: {kind} has {chip.dimensions} dimensions, as in {example}")
    return Topology(chip, shape, int(slices or 1))


def use_compiler_only() -> None:
    """Lets JAX compile for TPU on a machine without one; call it before using JAX."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud server in vain
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # without a chip, there is no conflict
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for; they can't run anything.

    Raises:
        UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning needs the TPU compiler: pip install 'dynamicrafter-jax[tpu]' (no TPU is used)"
        )
    shape = topology.shape
    options = dict(topology.chip.options)
    bounds: dict[str, object] = {}
    if any(size % 2 for size in shape[:2]) or math.prod(shape) < 4:
        bounds["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    if topology.slices > 1:
        bounds["num_slices"] = topology.slices
    grid = "x".join(map(str, shape))
    try:
        return topologies.get_topology_desc(
            topology_name=f"{topology.chip.compiler_name}:{grid}",
            platform="tpu",
            **options,
            **bounds,
        ).devices
    # JAX raises the second for what a compiler says it does not implement.
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the compiler has no topology {topology.name}: {reason}") from error


def compiler_version() -> str:
    """Returns the version of libtpu, or "none"."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _compact(chips: int) -> tuple[int, ...]:
    """Returns the rectangle closest to a square, with the short side first."""
    short = max(side for side in range(1, math.isqrt(chips) + 1) if chips % side == 0)
    return short, chips // short
