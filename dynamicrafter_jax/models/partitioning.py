"""How models declare which axes of an activation may be split over devices, without a mesh.

Axes have logical names. Rules set from outside map these to the axes of a mesh; without rules,
nothing here has any effect. An axis with one entry stays whole, and sizes that are not divisible
are padded to the next multiple.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

Names = tuple[str | None, ...]
MeshAxes = str | tuple[str, ...] | None

# A clip is split over chips by frames in layers that work within a frame, and by pixels in layers
# that work along time. The two layouts have different names, so that one table can map both.
WITHIN_FRAMES: Names = ("batch", "frames", "within", "channels")
ALONG_TIME: Names = ("batch", "time", "pixels", "channels")


def may_split() -> bool:
    """Returns whether activations may be split, which needs a mesh of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and bool(nn.get_logical_axis_rules())


def split_axes(
    shape: tuple[int, ...],
    names: Names,
    devices: Mapping[str, int],
    rules: Iterable[tuple[str, MeshAxes]],
) -> tuple[PartitionSpec, tuple[int, ...]]:
    """Returns how the leading axes of an array are split, and into how many parts each.

    All mapping from logical names to the axes of a mesh is done here.

    Args:
        shape: Shape of the array.
        names: Logical names of its axes; those without a name or a rule stay whole.
        devices: Number of devices along each axis of the mesh.
        rules: The axes of the mesh for each logical name.
    """
    table = dict(rules)
    spec: list[MeshAxes] = []
    parts = []
    for name, size in zip(names, shape, strict=False):
        axes = table.get(name) if name and size > 1 else None
        spec.append(axes or None)
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts.append(math.prod(devices[axis] for axis in axes))
    return PartitionSpec(*spec), tuple(parts)


def constrain(x: Array, names: Names) -> Array:
    """Splits an array by its logical axes; trailing axes without a name stay whole."""
    spec, parts = _in_force(x.shape, names)
    return x if parts is None else jax.lax.with_sharding_constraint(x, spec)


def exchange(x: Array, made: Names, wanted: Names) -> Array:
    """Moves an activation from one layout to another.

    Both are stated because XLA would otherwise compute sums in the second layout rather than the
    first, and send every summand for that.

    Args:
        x: The activation.
        made: Logical axes of the layout in which it is computed.
        wanted: Logical axes of the layout in which it is used.
    """
    return constrain(constrain(x, made), wanted)


def on_each_device(
    function: Callable[..., Array], x: Array, *weights: Array, names: Names
) -> Array:
    """Runs a function on each device's own part of `x`.

    XLA can't merge two axes that are both split, as a convolution with one batch axis for clips and
    frames needs: it would gather them. Within a part, there is nothing to gather.

    Args:
        function: Takes a part of `x`, then `weights`; its result has the same leading axes, whose
            entries don't depend on each other.
        x: An array that is split along its leading axes.
        *weights: Arrays that are replicated on every device.
        names: Logical names of the leading axes.
    """
    spec, parts = _in_force(x.shape, names)
    if parts is None or math.prod(parts) == 1:
        return function(x, *weights)
    sizes = x.shape[: len(parts)]
    missing = [-size % n for size, n in zip(sizes, parts, strict=True)]
    if any(missing):
        x = jnp.pad(x, [(0, count) for count in missing] + [(0, 0)] * (x.ndim - len(parts)))
    whole = (PartitionSpec(),) * len(weights)
    y = jax.shard_map(function, in_specs=(spec, *whole), out_specs=spec)(x, *weights)
    return y[tuple(slice(size) for size in sizes)] if any(missing) else y


def map_in_chunks(
    function: Callable[[Array], PyTree[Array]], rows: Array, at_once: int, names: Names
) -> PyTree[Array]:
    """Maps a function over the leading axis, a few rows at a time on each device.

    Args:
        function: Takes some rows; each row of its results depends only on the same row.
        rows: The rows to map over.
        at_once: Rows that a device processes at a time, which determines the memory needed.
        names: Logical name of the leading axis.
    """
    count = len(rows)
    _, parts = _in_force(rows.shape, names)
    devices = 1 if parts is None else math.prod(parts)
    at_once = min(at_once, -(-count // devices))
    chunks = -(-count // (devices * at_once))
    padding = [(0, devices * chunks * at_once - count)] + [(0, 0)] * (rows.ndim - 1)
    # Each device maps over neighbouring rows, so that none are moved before and after.
    parted = jnp.pad(rows, padding).reshape(devices, chunks, at_once, *rows.shape[1:])

    def chunk(part: Array) -> PyTree[Array]:
        part = constrain(part.reshape(devices * at_once, *part.shape[2:]), names)
        return jax.tree.map(lambda y: y.reshape(devices, at_once, *y.shape[1:]), function(part))

    parted = jnp.moveaxis(parted, 1, 0)
    if chunks == 1:  # avoids a loop, in which convolutions are slower on CPUs
        mapped = jax.tree.map(lambda y: y[None], chunk(parted[0]))
    else:
        mapped = jax.lax.map(chunk, parted)
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(-1, *y.shape[3:])[:count], mapped)


def _in_force(shape: tuple[int, ...], names: Names) -> tuple[PartitionSpec, tuple[int, ...] | None]:
    """Returns how leading axes are split, and into how many parts (None without a mesh)."""
    if not may_split():
        return PartitionSpec(), None
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    return split_axes(shape, names, mesh.shape, rules)
