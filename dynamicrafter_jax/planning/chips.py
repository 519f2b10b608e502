"""TPU chips, and the topologies of them that the compiler knows; all that touches libtpu is here.

Figures are those of the makers' pages, https://cloud.google.com/tpu/docs/ (v4, v5e, v5p, v6e,
tpu7x), for a *device*, which is what JAX counts and what a program is compiled for. A device is a
chip, but for v7x, whose chips are two devices each with half of everything. (A chip of v4 has two
cores too, which JAX takes as one device.)
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
    """What one device has.

    Attributes:
        name: As users write it.
        compiler_name: As the compiler does.
        hbm: Bytes of memory.
        usable_hbm: Those that the compiler lets a program have; the rest is the system's.
        dimensions: Of a slice.
        cores: Devices of a chip.
        options: What the compiler's topology needs besides its name.
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
    """Slices of chips.

    Attributes:
        chip: Of what kind.
        shape: Chips along each dimension of a slice.
        slices: How many.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As `parse_topology` reads it."""
        grid = "x".join(map(str, self.shape))
        several = f"{self.slices}*" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{grid}"

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return math.prod(self.shape) * self.chip.cores * self.slices


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name.

    Names give a slice's shape in chips, "v5e:4x4" or "v5p:2x2x2"; of v5e and v6e also their number,
    "v5e-16", for the most compact shape (of other chips such names count cores, so that they are
    refused); and several slices with a number in front, "2*v5e:4x4".

    Raises:
        UserError: If it is no such name, or the chip is not known.
    """
    found = re.fullmatch(
        r"(?:([1-9]\d*)\*)?(?:tpu-?)?(v?\d+\w*?)(?::([\dx]+)|-([1-9]\d*))", name.lower()
    )
    if not found:
        raise UserError(
            f"--topology is {name!r}: write chip and shape, as v5e:4x4, or chips, as v5e-16; "
            f"chips known: {', '.join(CHIPS)}"
        )
    slices, kind, grid, number = found.groups()
    kind = {"7x": "v7x", "v5litepod": "v5e"}.get(kind, kind)
    if kind not in CHIPS:
        raise UserError(f"no chip {kind!r}: those known are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    example = f"{kind}:{'x'.join('4' * chip.dimensions)}"
    if number:
        if chip.dimensions != 2:
            raise UserError(
                f"{name!r}: give the shape in chips, as {example}; {kind}-N counts cores"
            )
        shape = _compact(int(number))
    else:
        shape = tuple(int(size) for size in grid.split("x") if size)
    if len(shape) != chip.dimensions or math.prod(shape) < 1:
        raise UserError(f"{name!r}: {kind} has {chip.dimensions} dimensions, as {example}")
    return Topology(chip, shape, int(slices or 1))


def use_compiler_only() -> None:
    """Makes JAX compile for TPU on a machine without one; to be called before JAX is used."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks a cloud's server, in vain
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip, so nothing to fight over
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for, which can't run anything.

    Raises:
        UserError: If libtpu is not installed, or does not know the topology.
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
    """Returns the rectangle nearest to a square, the short side first."""
    short = max(side for side in range(1, math.isqrt(chips) + 1) if chips % side == 0)
    return short, chips // short
