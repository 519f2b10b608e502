"""Where arrays live: the only file that names mesh axes and partition specs."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dynamicrafter_jax.errors import UserError

# Logical axis of a parameter or activation -> mesh axis. A name without a row is not split.
LOGICAL_AXES = (("batch", "data"),)


def make_mesh(data: int) -> Mesh | None:
    """Returns a mesh that splits batches over `data` devices; None for a single one.

    Raises:
        UserError: If there are fewer devices.
    """
    devices = jax.devices()
    if not 1 <= data <= len(devices):
        raise UserError(f"mesh.data is {data}: choose from 1 to the {len(devices)} devices here")
    if data == 1:
        return None
    return jax.make_mesh((data,), ("data",), (AxisType.Auto,), devices=devices[:data])


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Puts a mesh and the table of logical axes in force, for tracing and running."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
        yield


def split_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Places arrays that lead with a batch axis, split over the mesh."""
    return _place(tree, mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Places arrays whole on every device of the mesh."""
    return _place(tree, mesh, PartitionSpec())


def batch_multiple(mesh: Mesh | None) -> int:
    """Returns what a batch must be a multiple of."""
    return 1 if mesh is None else mesh.shape["data"]


def _place(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, spec))
