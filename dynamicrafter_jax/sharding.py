"""Places arrays on devices; only this file names mesh axes and partition specs.

A mesh has four axes, any of which may have a single device:

- `data` splits batches, including a step's guided passes; it is the only axis that crosses slices;
- `fsdp` splits batches as well, and also parameters and optimizer moments;
- `sequence` splits a clip: by frames in layers that work within a frame, by pixels in layers that
  work along time;
- `tensor` splits attention heads and the hidden units of feed-forwards.

If a size is not divisible, XLA pads an activation's split axis to the next multiple.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import partitioning
from dynamicrafter_jax.models.layers import Names, Parameter

AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis of a parameter or activation -> mesh axes. A name without a row is not split.
LOGICAL_AXES = (
    ("batch", ("data", "fsdp")),
    ("frames", "sequence"),
    ("pixels", "sequence"),
    ("frames_everywhere", AXES),
    ("heads", "tensor"),
    ("mlp", "tensor"),
)

# A parameter with fewer elements is kept whole: gathering it would cost more than it saves.
_SMALL = 2**12

_BATCH = PartitionSpec(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The config section `mesh`: devices along each axis; one may be -1, for all the rest.

    Attributes:
        data: Devices that a batch is split over.
        fsdp: Devices that a batch, parameters and optimizer moments are split over.
        sequence: Devices that a clip is split over.
        tensor: Devices that heads and hidden units are split over.
    """

    data: int
    fsdp: int
    sequence: int
    tensor: int


def mesh_of(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh that a config asks for; see `make_mesh`.

    Raises:
        UserError: There are too few devices, or the section is invalid.
    """
    settings = settings_of(MeshSettings, "mesh", config.mesh)
    return make_mesh(**dataclasses.asdict(settings), devices=devices)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh over the first devices of all processes.

    Neighbours along `tensor` and `sequence` are neighbours in a TPU's torus. If devices belong to
    several slices, only `data` crosses slices.

    Args:
        data: Devices along this axis; one axis may be -1, for all that the others leave.
        fsdp: Devices along this axis, likewise.
        sequence: Devices along this axis, likewise.
        tensor: Devices along this axis, likewise.
        devices: Devices to choose from; by default those that JAX finds.

    Raises:
        UserError: There are too few devices, or the axes do not fit them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _fill(dict(zip(AXES, (data, fsdp, sequence, tensor), strict=True)), len(devices))
    devices = devices[: math.prod(sizes)]
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data is {sizes[0]}, but the devices are in {slices} slices: make it a multiple "
            "of that, since only batches can be split across slices"
        )
    if slices > 1:
        inner = (sizes[0] // slices, *sizes[1:])
        outer = (slices, 1, 1, 1)
        placed = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _fill(sizes: dict[str, int], available: int) -> tuple[int, ...]:
    """Returns the sizes with -1 replaced."""
    names = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size != 1)
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"{names}: only one axis of the mesh can be -1, the devices left over")
    known = math.prod(size for size in sizes.values() if size != -1)
    if known < 1 or any(size < -1 or size == 0 for size in sizes.values()):
        raise UserError(
            f"{names}: give each axis of the mesh 1 or more devices, or -1 for the rest"
        )
    if known > available:
        raise UserError(
            f"{names} needs {known} devices, but there are {available}: choose fewer, or -1 for all"
        )
    if rest and available % known:
        raise UserError(f"{names}: {known} does not divide the {available} devices here")
    return tuple(available // known if size == -1 else size for size in sizes.values())


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes a mesh and the table of logical axes current, for tracing and running."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
        yield


def split_axes(
    shape: tuple[int, ...], names: Names, mesh: Mesh
) -> tuple[PartitionSpec, tuple[int, ...]]:
    """Returns how an array's leading axes are split over a mesh, and into how many parts each."""
    return partitioning.split_axes(shape, names, mesh.shape, LOGICAL_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis as a batch."""
    return NamedSharding(mesh, _BATCH)


def parameter_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """Returns where each parameter lives: split by its logical axes, and over `fsdp`.

    `fsdp` splits the longest axis that it divides and that nothing else splits. A parameter is
    replicated along mesh axes that divide none of its axes.

    Args:
        boxed: Abstract parameters, with leaves boxed as `models.layers.Parameter`.
        mesh: The mesh.
    """

    def place(box: Parameter) -> NamedSharding:
        shape = box.value.shape
        spec: list = [
            axis if parts > 1 and size % parts == 0 else None
            for axis, parts, size in zip(*split_axes(shape, box.names, mesh), shape, strict=True)
        ]
        free = [
            axis
            for axis, size in enumerate(shape)
            if spec[axis] is None and size % mesh.shape["fsdp"] == 0
        ]
        if free and math.prod(shape) >= _SMALL:
            spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter))


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays with a leading batch axis that every process has in full.

    They are split over the mesh, or replicated if the mesh does not divide the batch.
    """

    def where(leaf: Array | np.ndarray) -> NamedSharding:
        return replicated(mesh) if len(leaf) % batch_multiple(mesh) else batch_sharding(mesh)

    return jax.tree.map(lambda leaf: place(leaf, where(leaf)), tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates arrays that every process has in full on every device of the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def place(array: Array | np.ndarray, where: Sharding) -> Array:
    """Places an array that every process has in full, without communication."""
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    if isinstance(array, Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        numbers = place(jax.random.key_data(array), where)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(array))
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def place_parameters(params: PyTree, where: PyTree) -> PyTree[Array]:
    """Places parameters that every process has in full.

    A parameter may be stored as several arrays, such as integers and their scales. They have the
    parameter's axes, and an axis with one entry stays whole.

    Args:
        params: For each leaf of `where`, an array or a pytree of arrays.
        where: From `parameter_shardings`.
    """

    def put(sharding: NamedSharding, parameter: PyTree) -> PyTree[Array]:
        def part(array: Array | np.ndarray) -> Array:
            axes = zip(sharding.spec, array.shape, strict=False)
            spec = PartitionSpec(*(axis if size > 1 else None for axis, size in axes))
            return place(array, NamedSharding(sharding.mesh, spec))

        return jax.tree.map(part, parameter)

    return jax.tree.map(put, where, params)


def batch_multiple(mesh: Mesh, passes: int = 1) -> int:
    """Returns what a batch must be a multiple of to be split evenly.

    Args:
        mesh: The mesh.
        passes: Rows that the U-Net sees for each row of the batch, because of guidance.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return devices // math.gcd(devices, passes)


def local_rows(mesh: Mesh, batch_size: int) -> Sequence[int]:
    """Returns the rows of a global batch that this process supplies.

    Raises:
        UserError: The batch can't be split evenly.
    """
    if batch_size % batch_multiple(mesh):
        raise UserError(
            f"a batch of {batch_size} can't be split over {batch_multiple(mesh)} devices: "
            "make it a multiple of that"
        )
    placed = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    every = np.arange(batch_size)
    return sorted({int(row) for place in placed.values() if place for row in every[place]})


def assemble_batch(tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Makes global arrays from the rows that each process supplies: its `local_rows`, in order."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(where, rows), tree)
