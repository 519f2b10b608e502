"""What the TPU compiler says of the kernels: they fit the chip, and do not store logits."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tpu_compiler")]

# Compiles one attention, forward and backward, for one v5e chip, and prints temporary bytes.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import choose_attention

devices = topologies.get_topology_desc(
    topology_name="v5e:1x1", platform="tpu", chips_per_host_bounds=(1, 1, 1)
).devices
mesh = sharding.make_mesh(devices=devices)
kernels = choose_attention(mesh)
query, key, name, backward = json.loads(sys.argv[1])

def attend(*arrays):
    return getattr(kernels, name)(*arrays)

def gradients(*arrays):
    return jax.vjp(attend, *arrays[:3])[1](arrays[3])

where = NamedSharding(mesh, PartitionSpec())
arrays = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in (query, key, key, query)
]
run, arrays = (gradients, arrays) if backward else (attend, arrays[:3])
compiled = jax.jit(run).lower(*arrays).compile()
print(compiled.memory_analysis().temp_size_in_bytes, "tpu_custom_call" in compiled.as_text())
"""


def compile_for_tpu(query, key, name="attention", backward=False):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEFAULT_MATMUL_PRECISION": "default",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([query, key, name, backward])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    temporary, is_kernel = run.stdout.split()[-2:]
    return int(temporary), is_kernel == "True"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "shape", [(2, 9216, 5, 64), (2, 2304, 10, 64), (2, 2560, 5, 64), (2, 576, 20, 64)]
)
def test_long_sequences_run_in_the_kernel(shape, backward):
    temporary, is_kernel = compile_for_tpu(shape, shape, backward=backward)
    assert is_kernel
    n, tokens, heads, width = shape
    operand = 2 * n * tokens * heads * width
    # Operands in the kernel's order, at most twice as large where 64 numbers fill 128 lanes.
    assert temporary < (24 if backward else 10) * operand


def test_the_wide_head_of_the_autoencoder_fits_the_chip():
    temporary, is_kernel = compile_for_tpu((1, 9216, 1, 512), (1, 9216, 1, 512))
    assert is_kernel and temporary < 9216**2


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_few_keys_need_little(backward):
    temporary, is_kernel = compile_for_tpu((16, 9216, 5, 64), (16, 77, 5, 64), backward=backward)
    assert not is_kernel
    assert temporary < 4e8


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_attention_along_time_stores_no_padded_logits(backward):
    shape = (1, 16, 2304, 10, 64)
    temporary, _ = compile_for_tpu(shape, shape, "temporal_attention", backward)
    assert temporary < (6 if backward else 3) * 2 * 16 * 2304 * 10 * 64
