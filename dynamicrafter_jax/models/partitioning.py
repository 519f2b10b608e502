"""How models say what of an activation may be split over devices, knowing no mesh.

Axes have logical names. Rules that are put in force from outside map them to the axes of a mesh;
without rules, nothing here does anything. An axis of one entry stays whole, and sizes that do not
divide are padded to the next multiple.
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

# A clip is split over chips by frames where layers look within a frame, and by pixels where they
# look along time. The two layouts have names of their own, so that one table can say which.
WITHIN_FRAMES: Names = ("batch", "frames", "within", "channels")
ALONG_TIME: Names = ("batch", "time", "pixels", "channels")


def may_split() -> bool:
    """Returns whether activations may be split at all: without a mesh of several devices, never."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and bool(nn.get_logical_axis_rules())


def split_axes(
    shape: tuple[int, ...],
    names: Names,
    devices: Mapping[str, int],
    rules: Iterable[tuple[str, MeshAxes]],
) -> tuple[PartitionSpec, tuple[int, ...]]:
    """Returns how the leading axes of an array are split, and in how many parts each is.

    This is the only way from logical names to the axes of a mesh.

    Args:
        shape: Of the array.
        names: Logical names of its axes; those without a name or a rule are whole.
        devices: Of each axis of the mesh.
        rules: For logical names, the axes of the mesh.
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
    """Names the logical axes of an array; trailing ones without a name are whole."""
    spec, parts = _in_force(x.shape, names)
    return x if parts is None else jax.lax.with_sharding_constraint(x, spec)


def exchange(x: Array, made: Names, wanted: Names) -> Array:
    """Moves an activation from one layout to another.

    Saying both keeps XLA from adding up in the second what is a sum in the first, for which it
    would send every summand.

    Args:
        x: The activation.
        made: Logical axes of the layout that it is computed in.
        wanted: Those of the layout that goes on.
    """
    return constrain(constrain(x, made), wanted)


def on_each_device(
    function: Callable[..., Array], x: Array, *weights: Array, names: Names
) -> Array:
    """Runs a function on each device's own part of `x`.

    XLA can't merge two axes that are both split, as a convolution must that has one batch axis
    for clips and frames: it would gather them. Within a part there is nothing to gather.

    Args:
        function: Takes a part of `x`, then `weights`; its result has the same leading axes, and
            no entry of them depends on another.
        x: Split along its leading axes.
        *weights: Whole on every device.
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
        function: Takes some rows; each row of its results depends on that row alone.
        rows: What to map over.
        at_once: Rows on a device at a time, which decides the memory needed.
        names: Logical name of the leading axis.
    """
    count = len(rows)
    _, parts = _in_force(rows.shape, names)
    devices = 1 if parts is None else math.prod(parts)
    at_once = min(at_once, -(-count // devices))
    chunks = -(-count // (devices * at_once))
    padding = [(0, devices * chunks * at_once - count)] + [(0, 0)] * (rows.ndim - 1)
    # Each device maps over neighbours, so that rows are where they were before and after.
    parted = jnp.pad(rows, padding).reshape(devices, chunks, at_once, *rows.shape[1:])

    def chunk(part: Array) -> PyTree[Array]:
        part = constrain(part.reshape(devices * at_once, *part.shape[2:]), names)
        return jax.tree.map(lambda y: y.reshape(devices, at_once, *y.shape[1:]), function(part))

    parted = jnp.moveaxis(parted, 1, 0)
    if chunks == 1:  # without a loop, in which CPUs convolve slower
        mapped = jax.tree.map(lambda y: y[None], chunk(parted[0]))
    else:
        mapped = jax.lax.map(chunk, parted)
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(-1, *y.shape[3:])[:count], mapped)


def _in_force(shape: tuple[int, ...], names: Names) -> tuple[PartitionSpec, tuple[int, ...] | None]:
    """Returns how leading axes are split, and in how many parts; None where there is no mesh."""
    if not may_split():
        return PartitionSpec(), None
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    return split_axes(shape, names, mesh.shape, rules)
