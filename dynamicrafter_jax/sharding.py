"""Where arrays live: the only file that names mesh axes and partition specs."""

import contextlib
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.layers import Parameter

# Logical axis of a parameter or activation -> mesh axis. A name without a row is not split.
LOGICAL_AXES = (("batch", "data"),)

_BATCH = PartitionSpec("data")


def make_mesh(data: int) -> Mesh:
    """Returns a mesh that splits batches over `data` devices of all processes; -1 means all.

    Raises:
        UserError: If there are fewer devices.
    """
    devices = jax.devices()
    if data != -1 and not 1 <= data <= len(devices):
        raise UserError(
            f"mesh.data is {data}: choose from 1 to the {len(devices)} devices here, or -1 for all"
        )
    devices = devices if data == -1 else devices[:data]
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Puts a mesh and the table of logical axes in force, for tracing and running."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split."""
    return NamedSharding(mesh, _BATCH)


def parameter_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """Returns where each parameter lives, by its logical axes.

    Args:
        boxed: Abstract parameters, leaves boxed as `models.layers.Parameter`.
        mesh: The mesh.
    """
    axes: dict[str | None, str] = dict(LOGICAL_AXES)

    def place(box: Parameter) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(axes.get(name) for name in box.names)))

    return jax.tree.map(place, boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter))


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays that lead with a batch axis and every process has, split over the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, batch_sharding(mesh)), tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays that every process has whole on every device of the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def place(array: Array | np.ndarray, where: Sharding) -> Array:
    """Places an array that every process has whole; each keeps its shards, and none is sent."""
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    if isinstance(array, Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        numbers = place(jax.random.key_data(array), where)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(array))
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def batch_multiple(mesh: Mesh) -> int:
    """Returns what a batch must be a multiple of."""
    return mesh.shape["data"]


def local_rows(mesh: Mesh, batch_size: int) -> Sequence[int]:
    """Returns the rows of a global batch that this process supplies.

    Raises:
        UserError: If the batch can't be split evenly.
    """
    if batch_size % batch_multiple(mesh):
        raise UserError(
            f"a batch of {batch_size} can't be split over {batch_multiple(mesh)} devices: "
            "make it a multiple"
        )
    placed = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    every = np.arange(batch_size)
    return sorted({int(row) for place in placed.values() if place for row in every[place]})


def assemble_batch(tree: PyTree, mesh: Mesh) -> PyTree[Array]:
    """Makes global arrays of what each process supplies: its `local_rows`, in order."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(where, rows), tree)
