"""What is compiled again, and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dynamicrafter_jax import sharding
from dynamicrafter_jax.runtime.program import Program


@pytest.mark.parametrize(("devices", "programs"), [(1, 1), (2, 2)])
def test_one_layout_is_compiled_once_however_it_is_written(devices, programs):
    """Split over one device is not split at all, but over two it is."""
    mesh = sharding.make_mesh(devices)
    double = Program(lambda x: 2 * x)
    for spec in (PartitionSpec(), PartitionSpec("data"), PartitionSpec(("data", "fsdp"))):
        x = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, spec))
        for _ in range(2):
            assert np.array_equal(double(x), [0, 2, 4, 6])
    assert len(double._compiled) == programs


def test_shapes_types_static_arguments_and_precision_are_compiled_for():
    power = Program(lambda x, *, exponent: x**exponent)
    for x in (jnp.full(2, 3), jnp.full(3, 3), jnp.full(3, 3.0)):
        assert np.array_equal(power(x, exponent=2), np.full(len(x), 9))
    assert np.array_equal(power(jnp.full(3, 3), exponent=3), [27, 27, 27])
    assert len(power._compiled) == 4
    with jax.default_matmul_precision("bfloat16"):
        power(jnp.full(3, 3), exponent=3)
    assert len(power._compiled) == 5
