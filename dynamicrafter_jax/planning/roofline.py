"""The least time that a program takes on a chip: of arithmetic, memory or links, the longest."""

import dataclasses
import math

from dynamicrafter_jax.planning.chips import Chip
from dynamicrafter_jax.planning.collectives import Collective
from dynamicrafter_jax.planning.hlo import ProgramCounts


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a program on one device, were nothing in its way but one wall.

    Attributes:
        compute: At the peak of bfloat16.
        memory: At the peak of HBM.
        network: At the peak of the links that a group of devices has among itself.
        exchange: The part of `network` that all-to-all takes.
    """

    compute: float
    memory: float
    network: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Of the highest wall: the three overlap at best."""
        return max(self.compute, self.memory, self.network)

    @property
    def wall(self) -> str:
        """What limits: "compute", "memory" or "network"."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


def roofline(counts: ProgramCounts, chip: Chip, devices_per_slice: int) -> Roofline:
    """Returns the walls of what one device does.

    Args:
        counts: Of one device.
        chip: What the device is.
        devices_per_slice: Of the mesh, which lists the devices of one slice after another.
    """
    times = [(each, _seconds(each, chip, devices_per_slice)) for each in counts.collectives]
    return Roofline(
        compute=counts.flops / chip.peak_flops,
        memory=counts.bytes / chip.hbm_bandwidth,
        network=sum((seconds for _, seconds in times), 0.0),
        exchange=sum((time for each, time in times if each.kind == "all-to-all"), 0.0),
    )


def _seconds(collective: Collective, chip: Chip, devices_per_slice: int) -> float:
    """Returns how long a collective takes at least.

    A group is taken to be as compact a block of neighbours as its size allows, without the links
    that close a torus, which small slices lack. Gathering, scattering and reducing use all links
    within the block; an exchange sends each part over as many links as the way is long; a
    permutation uses one link. Between slices everything goes over the data centre's network.
    """
    slices = {device // devices_per_slice for device in collective.group}
    if len(slices) > 1:
        return collective.bytes / chip.dcn_bandwidth
    if collective.group_size == 1:
        return collective.bytes / chip.link_bandwidth if collective.bytes else 0.0
    if collective.kind == "collective-permute":
        return collective.bytes / chip.link_bandwidth
    sides = _block(collective.group_size, chip.dimensions)
    links = sum(2 * (side - 1) / side for side in sides)
    hops = 1.0
    if collective.kind == "all-to-all":
        n = math.prod(sides)
        hops = sum((side * side - 1) / (3 * side) for side in sides) * n / (n - 1)
    return collective.bytes * hops / (links * chip.link_bandwidth)


def _block(size: int, dimensions: int) -> tuple[int, ...]:
    """Returns the sides of the most compact block of `size` devices."""
    sides: tuple[int, ...] = ()
    for left in range(dimensions, 0, -1):
        side = max(s for s in range(1, size + 1) if size % s == 0 and s**left <= size)
        sides, size = (*sides, side), size // side
    return sides
