"""Plans of the smallest model, compiled for simulated devices in place of chips."""

import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning.chips import parse_topology
from dynamicrafter_jax.planning.plans import as_text, make_plan
from dynamicrafter_jax.planning.programs import forward_flops
from dynamicrafter_jax.training.throughput import product_flops
from dynamicrafter_jax.weights.load import abstract_params

ROOT = Path(__file__).parent.parent


def micro(**mesh: int) -> ConfigDict:
    config = load_config(ROOT / "configs" / "micro.py")
    config.mesh.update(mesh)
    return config


def sampled(tmp_path: Path, config: ConfigDict, batch: int | None = None) -> dict:
    topology = parse_topology("v5e:1x2")
    cache = epath.Path(tmp_path)
    return make_plan(config, topology, jax.devices()[:2], "sample", batch=batch, cache=cache)


def test_sampling_two_clips_on_two_devices(tmp_path: Path):
    config = micro(data=2)
    plan = sampled(tmp_path, config, batch=2)
    encode, denoise, decode = plan["programs"]
    assert plan["fits"] and plan["advice"] == ""
    assert 0.95 < plan["summary"]["ratio"] < 1.05
    assert plan["summary"]["share_a_device"] == pytest.approx(plan["summary"]["ratio"] / 2)
    assert denoise["loops_counted_once"]  # one step
    models, latent = networks_of(config), jnp.zeros((1, 8, 12, 4))
    frame = jax.jit(lambda params: models.apply("vae", params, latent, method="decode"))
    frames = 2 * config.sampling.num_frames
    needed = frames * product_flops(frame.trace(tiny.micro().params).jaxpr)
    assert decode["flops"] == pytest.approx(needed, rel=0.05)
    # What a program does not read lies beside it, and all of it is there each time.
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.micro().params))
    for program in (encode, denoise, decode):
        memory = program["memory_bytes"]
        assert memory["parameters"] + memory["parameters beside"] == stored
        assert memory["total"] == sum(memory.values()) - memory["total"]
    assert json.loads(json.dumps(plan)) == plan
    assert as_text(plan).endswith("\nfits")


def test_a_mesh_of_another_size_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"mesh has 1 devices, but v5e:1x2 has 2.*-1"):
        sampled(tmp_path, micro())


@pytest.mark.slow  # about a minute to trace the three U-Nets
@pytest.mark.parametrize(
    ("name", "tflop"), [("i2v_256", 4.90), ("i2v_512", 12.60), ("i2v_1024", 52.34)]
)
def test_the_released_networks_take_what_the_reference_says(name: str, tflop: float):
    config = load_config(name)
    params = nn.meta.unbox(abstract_params(config))
    found = forward_flops(config, params)
    # The release makes keys and values of the text for each of 16 frames; here once a clip.
    leaves = jax.tree_util.tree_leaves_with_path(params["unet"])
    text = sum(leaf.size for path, leaf in leaves if "text_" in jax.tree_util.keystr(path))
    saved = 15 * 2 * 77 * text
    assert (found.unet + saved) / 1e12 == pytest.approx(tflop, abs=0.005)


@pytest.mark.slow  # a training step compiles in minutes
def test_training_without_a_cache(tmp_path: Path):
    config = micro(fsdp=2)
    config.train.update(batch_size=4, accumulation=2)
    topology = parse_topology("v5e:1x2")
    plan = make_plan(config, topology, jax.devices()[:2], "train", cache=epath.Path(tmp_path))
    assert [p["name"] for p in plan["programs"]] == ["step", "frozen networks"]
    assert 1.0 < plan["summary"]["ratio"] < 1.4
    mesh = sharding.mesh_of(config, jax.devices()[:2])
    boxed = abstract_params(config)
    whole = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(nn.meta.unbox(boxed)))
    memory = plan["programs"][0]["memory_bytes"]
    assert memory["parameters"] < 0.6 * whole  # split over the mesh
    assert mesh.size == 2
