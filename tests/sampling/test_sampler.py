"""Sampling that several processes share."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quick import xla_flags

ROOT = Path(__file__).parents[2]

# Samples three clips on four devices and writes down what each process gets.
SCRIPT = """
import os, sys
process, count, port, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["XLA_FLAGS"] = sys.argv[5]
import jax
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
import numpy as np
from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import Sampler
from dynamicrafter_jax.sampling.settings import SamplingSettings

config = load_config("tests/configs/micro.py")
mesh = sharding.make_mesh(-1)
params = init_params(abstract_models(networks_of(config)), jax.random.key(0))
params = jax.tree.map(lambda leaf: sharding.place(leaf + 0.02, sharding.replicated(mesh)), params)
sampler = Sampler(config, mesh)
settings = SamplingSettings.from_config(config.sampling, steps=2)
images = [np.full((16, 24, 3), level, np.uint8) for level in (30, 90, 200)]
inputs = sampler.read(images, ["a cat", "a dog", ""], settings)
clips = sampler(params, inputs, settings, KeyedNoise.from_seed(0, range(3)))
np.savez(output, latents=clips.latents, video=clips.video)
"""


def sample(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    flags = xla_flags(4 // count)
    outputs = [folder / f"{count}_{process}.npz" for process in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (process, count, port, output)), flags],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, output in enumerate(outputs)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [dict(np.load(output)) for output in outputs]


@pytest.mark.slow
def test_two_processes_sample_what_one_does(tmp_path: Path):
    first, second = sample(tmp_path, 2)
    (alone,) = sample(tmp_path, 1)
    assert alone["video"].shape == (3, 3, 16, 24, 3) and alone["video"].std() > 0
    for name in ("latents", "video"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-5)
