"""Meshes, and where things live on them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import Linear, abstract_params, init_params
from dynamicrafter_jax.models.partitioning import (
    ALONG_TIME,
    WITHIN_FRAMES,
    constrain,
    map_in_chunks,
    on_each_device,
)
from dynamicrafter_jax.planning import chips
from dynamicrafter_jax.planning.hlo import read_program
from dynamicrafter_jax.runtime.program import Program


def test_an_axis_of_minus_one_takes_what_the_others_leave():
    assert dict(sharding.make_mesh(-1).shape) == dict(data=8, fsdp=1, sequence=1, tensor=1)
    mesh = sharding.make_mesh(fsdp=-1, tensor=2)
    assert dict(mesh.shape) == dict(data=1, fsdp=4, sequence=1, tensor=2)
    assert sharding.make_mesh(sequence=3).size == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 99}, "mesh.data=99 needs 99 devices, but there are 8"),
        ({"data": 4, "tensor": 3}, "mesh.data=4 x mesh.tensor=3 needs 12 devices"),
        ({"data": -1, "fsdp": -1}, "only one axis of the mesh can be -1"),
        ({"data": -1, "fsdp": 3}, "3 does not divide the 8 devices"),
        ({"sequence": 0}, "give each axis of the mesh 1 or more devices"),
        ({"sequence": -2}, "give each axis of the mesh 1 or more devices"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(**sizes)


def test_a_section_with_an_unknown_axis_is_refused():
    config = tiny.micro().config.copy_and_resolve_references()
    config.mesh.model = 2
    with pytest.raises(UserError, match="unknown mesh setting model"):
        sharding.mesh_of(config)


@pytest.mark.usefixtures("tpu_compiler")
def test_only_batches_are_split_from_slice_to_slice(monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other workers may have it loaded
    devices = chips.topology_devices(chips.parse_topology("2*v5e:2x2"))
    mesh = sharding.make_mesh(data=4, fsdp=2, devices=devices)
    of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert of_slice.shape == (4, 2, 1, 1)
    assert np.array_equal(of_slice[:2], np.zeros((2, 2, 1, 1)))
    assert np.array_equal(of_slice[2:], np.ones((2, 2, 1, 1)))
    with pytest.raises(UserError, match=r"mesh\.data is 1, but the devices are in 2 slices"):
        sharding.make_mesh(fsdp=8, devices=devices)


def test_every_large_parameter_is_split_and_every_part_is_the_same():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    for boxed in abstract_models(tiny.models("v")).values():
        where = sharding.parameter_shardings(boxed, mesh)
        for box, placed in zip(
            jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names")),
            jax.tree.leaves(where),
            strict=True,
        ):
            shape = box.value.shape
            part = placed.shard_shape(shape)  # raises where it does not divide
            parts = np.prod(shape) // np.prod(part)
            if np.prod(shape) >= 2**12:
                assert parts >= 4, (box.names, shape, placed)
            even = [n for name, n in zip(box.names, shape, strict=True) if name in ("heads", "mlp")]
            assert ("tensor" in placed.spec) == any(n % 2 == 0 for n in even)


class Int8(NamedTuple):
    """A kernel in 8 bits, with a scale for each output."""

    values: Any
    scales: Any

    def astype(self, dtype):
        return self.values.astype(dtype) * self.scales.astype(dtype)


def test_a_parameter_may_be_stored_as_several_arrays(relative_error):
    layer = Linear((64,), ("embed", "mlp"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 96)), jnp.float32)
    boxed = abstract_params(layer, x)
    params = init_params(boxed, jax.random.key(0))
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    scales = np.abs(kernel).max(0, keepdims=True) / 127
    stored = {"kernel": Int8(np.round(kernel / scales).astype(np.int8), scales), "bias": bias}

    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    placed = sharding.place_parameters(stored, sharding.parameter_shardings(boxed, mesh))
    values, scaled = placed["kernel"]
    assert values.dtype == jnp.int8 and values.sharding.spec == PartitionSpec("fsdp", "tensor")
    assert values.sharding.shard_shape(values.shape) == (24, 32)
    assert scaled.sharding.shard_shape(scaled.shape) == (1, 32)

    with sharding.use_mesh(mesh):
        y: Any = Program(layer.apply)({"params": placed}, sharding.split_batch(x, mesh))
    dequantised = stored["kernel"].values * scales.astype(np.float64)
    assert relative_error(y, np.asarray(x) @ dequantised + bias) < 1e-6
    exact = np.asarray(x) @ kernel + bias
    assert 1e-4 < relative_error(y, exact) < 2e-2  # so it was the stored values that were used


def test_what_does_not_divide_stays_whole():
    boxed = abstract_models(tiny.models("v"))["unet"]
    for placed in jax.tree.leaves(sharding.parameter_shardings(boxed, sharding.make_mesh(fsdp=7))):
        assert placed.spec == PartitionSpec(*[None] * len(placed.spec))


def test_a_batch_that_does_not_divide_is_whole_everywhere():
    mesh = sharding.make_mesh(data=2, fsdp=2, sequence=2)
    rows = sharding.split_batch({"four": np.zeros((4, 3)), "two": np.zeros((2, 3))}, mesh)
    assert rows["four"].sharding.shard_shape((4, 3)) == (1, 3)
    assert rows["two"].sharding.shard_shape((2, 3)) == (2, 3)
    assert [sharding.batch_multiple(mesh, passes) for passes in (1, 2, 3)] == [4, 2, 4]


def test_from_frames_to_pixels_there_is_an_exchange_and_no_gathering():
    mesh = sharding.make_mesh(data=2, sequence=4)

    def there(x):
        x = constrain(x, WITHIN_FRAMES)
        return constrain(jnp.sin(x), ALONG_TIME)

    x = jnp.arange(2.0 * 8 * 12 * 4).reshape(2, 8, 12, 4)
    with sharding.use_mesh(mesh):
        program = jax.jit(there).lower(x).compile()
    assert np.allclose(program(x), np.sin(x))
    kinds = {collective.kind for collective in read_program(str(program.as_text())).collectives}
    assert kinds == {"all-to-all"}


@pytest.mark.parametrize("sizes", [(2, 4), (3, 6), (1, 5), (4, 1)])
def test_parts_of_a_merged_axis_are_never_gathered(sizes):
    def merged(x, w):
        return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:2], -1)

    x = jnp.arange(float(np.prod(sizes) * 3)).reshape(*sizes, 3)
    w = jnp.arange(6.0).reshape(3, 2)

    def run(x, w):
        x = constrain(x, ("batch", "frames"))
        return on_each_device(merged, x, w, names=("batch", "frames"))

    with sharding.use_mesh(sharding.make_mesh(data=2, sequence=4)):
        program = jax.jit(run).lower(x, w).compile()
        gradient = jax.jit(jax.grad(lambda w: run(x, w).sum()))(w)
    assert np.allclose(program(x, w), merged(x, w))
    assert np.allclose(gradient, np.asarray(x).sum((0, 1))[:, None])
    if sizes == (2, 4):
        assert not read_program(str(program.as_text())).collectives


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize("devices", [1, 8])
def test_chunks_are_small_on_each_device_and_rows_keep_their_order(count, devices):
    seen = []

    def function(rows):
        seen.append(len(rows))
        return {"twice": 2 * rows, "sum": rows.sum((1, 2))}

    rows = jnp.arange(count * 6.0).reshape(count, 2, 3)
    with sharding.use_mesh(sharding.make_mesh(data=devices)):
        run = jax.jit(lambda rows: map_in_chunks(function, rows, 2, ("frames_everywhere",)))
        mapped = run(rows)
    assert set(seen) <= {min(2, -(-count // n)) * n for n in (1, devices)}
    assert np.array_equal(mapped["twice"], 2 * rows)
    assert np.array_equal(mapped["sum"], rows.sum((1, 2)))
