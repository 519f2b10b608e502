"""Clips split in every way: the numbers of the release, and a fair share of the work."""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.diffusion.loss import denoising_loss
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.models import Models, abstract_models
from dynamicrafter_jax.models.layers import Module, abstract_params, init_params
from dynamicrafter_jax.models.partitioning import WITHIN_FRAMES, constrain
from dynamicrafter_jax.models.transformers import DualCrossAttention, FeedForward, SelfAttention
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.planning.hlo import read_program
from dynamicrafter_jax.training.throughput import product_flops

MIXES: list[dict[str, int]] = [
    {"fsdp": 8},
    {"data": 2, "sequence": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "sequence": 2},
]


def name(sizes: dict[str, int]) -> str:
    return " ".join(f"{axis} {size}" for axis, size in sizes.items())


each_mix = pytest.mark.parametrize("sizes", MIXES, ids=name)


def assert_fair(traced: Any, compiled: Any, sizes: dict[str, int], params: Any) -> None:
    """Each device does its share, and only parameters are ever gathered."""
    counts = read_program(str(compiled.as_text()))
    split = math.prod(size for axis, size in sizes.items() if axis != "tensor")
    assert counts.flops <= 1.1 / split * product_flops(traced.jaxpr)
    kept = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(params)}
    gathered = {
        tuple(sorted(shape))
        for collective in counts.collectives
        if collective.kind == "all-gather"
        for shape in collective.results
    }
    assert gathered <= (kept if "fsdp" in sizes else set())


@pytest.mark.slow
@each_mix
def test_a_sample_is_the_releases_however_it_is_split(relative_error, sizes):
    golden = tiny.golden("sample_v_cfg")
    settings = json.loads(str(golden["settings"]))
    config = tiny.config("v")
    config.mesh.update(sizes)
    params = {section: tiny.params("v", section) for section in Models._fields}
    animate = ImageToVideo(config, params)
    # As many clips as fill the devices with two passes each, all of them the release's.
    count = max(1, sharding.batch_multiple(animate.sampler.mesh) // 2)
    noise = {
        "posterior_noise": np.concatenate([golden["posterior_noise"]] * count),
        "x_T": np.concatenate([golden["x_T"]] * count),
        "step_noise": np.concatenate([golden["step_noise"]] * count, 1),
    }
    clips = animate.sample(
        [golden["first"]] * count,
        settings["prompts"] * count,
        noise=noise,
        fps=settings["fs"],
        **{
            key: settings[key]
            for key in ("steps", "eta", "guidance_scale", "guidance_rescale", "spacing")
        },
    )
    for ours in clips.latents:
        assert relative_error(ours, golden["latents"][0]) < 2e-5
    for ours in clips.video:
        assert relative_error(ours, golden["video"][0]) < 2e-5


def golden_loss(models: Models, copies: int) -> tuple[Any, tuple]:
    """The release's training loss as a function of parameters and inputs, and these inputs."""
    golden = tiny.golden("loss_v")
    schedule = make_schedule(**tiny.config("v").diffusion.to_dict())

    def loss(params, z, noise, concat, timesteps, fs, text, tokens):
        image = conditioning.project_tokens(models, params, tokens)
        condition = Conditioning(text=text, image=image, concat=concat, fs=fs)
        unet = conditioning.conditioned_unet(models, params)

        def predict(x, timestep):
            return unet(x, timestep, condition)

        return denoising_loss(predict, schedule, z, noise, timesteps).mean()

    names = ("z", "noise", "concat", "timesteps", "fs", "text_context", "vision_tokens")
    inputs = [np.concatenate([golden[name]] * copies) for name in names]
    inputs[3], inputs[4] = inputs[3].astype(np.int32), inputs[4].astype(np.float32)
    return loss, tuple(inputs)


def trained_params(mesh) -> Any:
    boxed = abstract_models(tiny.models("v"))
    return {
        section: jax.tree.map(
            sharding.place,
            tiny.params("v", section),
            sharding.parameter_shardings(boxed[section], mesh),
        )
        for section in ("unet", "projector")
    }


@pytest.mark.slow
@each_mix
def test_the_training_loss_is_the_releases_however_it_is_split(sizes):
    mesh = sharding.make_mesh(**sizes)
    loss, inputs = golden_loss(networks_of(tiny.config("v"), choose_attention(mesh)), 4)
    params = trained_params(mesh)
    with sharding.use_mesh(mesh):
        traced = jax.jit(loss).trace(params, *sharding.split_batch(inputs, mesh))
        compiled = traced.lower().compile()
        ours = float(compiled(params, *sharding.split_batch(inputs, mesh)))
    assert abs(ours - float(tiny.golden("loss_v")["loss"])) < 2e-5
    assert_fair(traced, compiled, sizes, params)


def micro_inputs(frames: int) -> tuple[np.ndarray, ...]:
    """Inputs of the smallest U-Net for two clips."""
    draw = np.random.default_rng(0).standard_normal
    return (
        draw((2, frames, 16, 24, 8)).astype(np.float32),
        np.asarray([500, 20], np.float32),
        draw((2, 7, 16)).astype(np.float32),
        draw((2, frames, 5, 16)).astype(np.float32),
        np.asarray([24, 10], np.float32),
    )


def applied(unet: Module, params: Any, *inputs: Any) -> Any:
    return unet.apply({"params": params}, *inputs)


@pytest.mark.slow
def test_every_gradient_is_the_same_and_split_as_its_parameter():
    params = tiny.micro().params["unet"]
    boxed = abstract_models(tiny.micro().models)["unet"]
    results = []

    def loss(unet, params, *inputs):
        return jnp.square(applied(unet, params, *inputs)).mean()

    for mesh in (sharding.make_mesh(), sharding.make_mesh(fsdp=2, sequence=2, tensor=2)):
        where = sharding.parameter_shardings(boxed, mesh)
        placed = jax.tree.map(sharding.place, params, where)
        with sharding.use_mesh(mesh):
            unet = networks_of(tiny.micro().config, choose_attention(mesh)).unet
            bound = functools.partial(loss, unet)
            gradient = jax.jit(jax.grad(bound), out_shardings=where)
            results.append(gradient(placed, *sharding.split_batch(micro_inputs(4), mesh)))
    wanted, ours = results
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert np.allclose(one, other, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.slow
def test_sixteen_frames_on_eight_devices(relative_error):
    params, inputs, results = tiny.micro().params["unet"], micro_inputs(16), []
    for devices in (1, 8):
        mesh = sharding.make_mesh(sequence=devices)
        unet = networks_of(tiny.micro().config, choose_attention(mesh)).unet
        arguments = sharding.replicate((params, *inputs), mesh)
        with sharding.use_mesh(mesh):
            run = jax.jit(functools.partial(applied, unet))
            traced = run.trace(*arguments)
            compiled = traced.lower().compile()
            results.append(np.asarray(compiled(*arguments)))
        assert_fair(traced, compiled, {"sequence": devices}, params)
    assert relative_error(results[1], results[0]) < 2e-5


def attended(module: Module, x, text, image) -> Any:
    """Runs one of the modules that `tensor` splits."""
    if isinstance(module, DualCrossAttention):
        return module(x, text, image)
    if isinstance(module, SelfAttention):
        return module(
            x, functools.partial(networks().unet.common.attention, names=("batch", "frames"))
        )
    return module(x)


@functools.cache
def networks() -> Models:
    return networks_of(tiny.config("v"))


@pytest.mark.parametrize(
    "module",
    [SelfAttention(4, 8), DualCrossAttention(4, 8), FeedForward()],
    ids=lambda module: type(module).__name__,
)
def test_tensor_splits_attention_and_feed_forward(relative_error, module):
    draw = np.random.default_rng(0).standard_normal
    shapes = ((2, 3, 10, 32), (2, 7, 12), (2, 3, 5, 12))
    inputs = [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]
    boxed = abstract_params(module, *inputs, method=attended)
    params = init_params(boxed, jax.random.key(0))

    def run(params, x, text, image):
        y = module.apply({"params": params}, x, text, image, method=attended)
        return constrain(y, WITHIN_FRAMES)

    wanted: Any = run(params, *inputs)
    mesh = sharding.make_mesh(tensor=2)
    with sharding.use_mesh(mesh):
        where = sharding.parameter_shardings(boxed, mesh)
        placed = jax.tree.map(sharding.place, params, where)
        traced = jax.jit(run).trace(placed, *inputs)
        compiled = traced.lower().compile()
    assert relative_error(compiled(placed, *inputs), wanted) < 1e-5
    counts = read_program(str(compiled.as_text()))
    assert counts.flops <= 1.1 / 2 * product_flops(traced.jaxpr)
    assert {collective.kind for collective in counts.collectives} <= {"all-reduce"}
