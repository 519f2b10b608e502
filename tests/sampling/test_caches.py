"""Steps that reuse what earlier ones computed, in the compiled loop of the smallest model."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.diffusion.caches import CacheTables, GuidanceTables
from dynamicrafter_jax.diffusion.guidance import guide, rescale_guidance
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.settings import GuidanceScales, SamplingSettings

STEPS, PASSES, DEPTH = 6, 2, 1
CONFIG = load_config(tiny.GOLDEN.parent / "configs" / "micro.py")
SETTINGS = SamplingSettings.from_config(CONFIG.sampling, steps=STEPS, guidance_rescale=0.7)
SHAPE = stages.latent_shape(networks_of(CONFIG), SETTINGS)
METHOD, TABLES = stages.make_steps(
    networks_of(CONFIG),
    make_schedule(**CONFIG.diffusion.to_dict()),
    dataclasses.replace(
        SETTINGS,
        deep_cache_interval=3,
        deep_cache_depth=DEPTH,
        guidance_start=0.1,
        guidance_stop=0.8,
        guidance_reuse_interval=2,
    ),
)
SOLVER, ROWS, CACHES = METHOD.solver, TABLES.coefficients, TABLES.caches
ALWAYS = CacheTables(
    np.ones(STEPS, bool), GuidanceTables(np.ones(STEPS, bool), np.ones(STEPS, np.float32))
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def conditions_of(clips: slice) -> tuple[Conditioning, Conditioning]:
    """What each pass of some of four clips is conditioned on."""
    conditional = Conditioning(
        text=normal(1, 4, 7, 16)[clips],
        image=normal(2, 4, 3, 16, 16)[clips],
        concat=normal(3, 4, *SHAPE)[clips],
        fs=normal(4, 4)[clips] + 24,
    )
    other = normal(5, 4, 7, 16)[clips], normal(6, 4, 3, 16, 16)[clips]
    return conditional, conditional._replace(text=other[0], image=other[1])


@functools.cache
def programs(models: Models) -> tuple[Program, Program]:
    return Program(functools.partial(stages.start, METHOD)), Program(
        functools.partial(stages.denoise, models, method=METHOD)
    )


def denoised(
    caches: CacheTables = CACHES,
    *,
    clips: slice = slice(4),
    stride: int = STEPS,
    sequential: bool = False,
    **mesh: Any,
) -> np.ndarray:
    """Returns the latents of clips, with so many steps a call."""
    devices = sharding.make_mesh(**mesh)
    models = networks_of(CONFIG, choose_attention(devices))
    start, denoise = programs(models)
    whole = functools.partial(sharding.replicate, mesh=devices)
    split = functools.partial(sharding.split_batch, mesh=devices)
    draws = split(KeyedNoise.from_seed(0, range(*clips.indices(4))))
    conditions = split(conditions_of(clips))
    scales = split(GuidanceScales.per_clip([SETTINGS] * len(draws.keys)))
    params, tables = whole((tiny.micro().params, stages.Tables(ROWS, caches)))
    with sharding.use_mesh(devices):
        state = start(draws, shape=SHAPE)
        for first in range(0, STEPS, stride):
            bounds = whole((np.asarray(first, np.int32), np.asarray(first + stride, np.int32)))
            arguments = (params, conditions, tables, scales, state, draws, *bounds)
            state = denoise(*arguments, sequential=sequential)
    return np.asarray(state.x)


@jax.jit
def plain_pass(
    params: Any, x: Any, timestep: Any, condition: Conditioning, anew: Any, deep: Any
) -> Any:
    """The plain U-Net, all of it run, whose own deep feature is replaced unless it is made anew."""
    seen = []

    def at_border(call, args, kwargs, context):
        if context.module.path == ("output_1",):
            own, skip = jnp.split(args[0], 2, -1)
            seen.append(jnp.where(anew, own, deep))
            args = (jnp.concatenate([*seen, skip], -1), *args[1:])
        return call(*args, **kwargs)

    unet = conditioning.conditioned_unet(tiny.micro().models, params)
    with nn.intercept_methods(at_border):
        return unet(x, timestep, condition), *seen


@functools.cache
def by_hand(caching: bool) -> np.ndarray:
    """Denoises all clips step by step, in Python; without caches, all is run at every step."""
    draws = KeyedNoise.from_seed(0, range(4))
    state: Any = stages.start(METHOD, draws, shape=SHAPE)
    x, conditions, differences = state.x, conditions_of(slice(4)), 0
    features: list[Any] = [jnp.full((4, *SHAPE[:3], 32), jnp.nan)] * PASSES
    assert CACHES.deep is not None and CACHES.guidance is not None
    for index, timestep in enumerate(ROWS.timestep):
        every = not caching or CACHES.guidance.all_passes[index]
        anew = not caching or CACHES.deep[index]
        predictions = []
        for number in range(PASSES if every else 1):
            inputs = x, jnp.full(4, timestep), conditions[number], anew, features[number]
            prediction, features[number] = plain_pass(tiny.micro().params, *inputs)
            predictions.append(prediction)
        conditional = guided = predictions[0]
        if every:
            differences = predictions[1] - conditional
        if not caching or CACHES.guidance.kept[index]:
            guided = guide(conditional, conditional + differences, SETTINGS.guidance_scale)
            guided = rescale_guidance(guided, conditional, SETTINGS.guidance_rescale)
        row = jax.tree.map(lambda table, i=index: table[i], ROWS)
        x, _ = SOLVER.step((), x, guided, row, draws.step(jnp.int32(index), SHAPE))
    return np.asarray(x)


ONE = slice(2, 3)  # a clip that is not the first of its batch


def test_cached_steps_are_those_of_a_loop_by_hand(relative_error):
    assert CACHES.deep is not None and CACHES.guidance is not None
    work = set(zip(CACHES.deep, CACHES.guidance.all_passes, CACHES.guidance.kept, strict=True))
    assert len(work) == 6, "a kind of step is missing"
    ours = denoised(clips=ONE)
    assert relative_error(ours, by_hand(True)[ONE]) < 2e-5
    assert relative_error(ours, by_hand(False)[ONE]) > 1e-2


def test_other_intervals_are_served_by_one_program_in_any_number_of_calls(relative_error):
    whole = denoised(clips=ONE)
    _, denoise = programs(networks_of(CONFIG, choose_attention(sharding.make_mesh())))
    before = len(denoise._compiled)
    assert np.array_equal(denoised(clips=ONE, stride=2), whole)
    uncached = denoised(ALWAYS, clips=ONE)
    assert relative_error(uncached, by_hand(False)[ONE]) < 2e-5
    assert len(denoise._compiled) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"sequential": True}, {"data": 2, "sequence": 2}])
def test_cached_clips_are_the_same_in_a_batch_however_it_is_run(relative_error, how):
    assert relative_error(denoised(**how), by_hand(True)) < 2e-5


def test_what_is_kept_has_the_type_computed_in():
    config = CONFIG.copy_and_resolve_references()
    config.precision.dtype = "bfloat16"
    models, draws = networks_of(config), KeyedNoise.from_seed(0, [2])
    schedule = make_schedule(**config.diffusion.to_dict())
    settings = dataclasses.replace(SETTINGS, deep_cache_interval=3)
    method, tables = stages.make_steps(models, schedule, settings)
    assert method.carry.dtype == jnp.bfloat16
    state = stages.start(method, draws, shape=SHAPE)
    denoise = functools.partial(stages.denoise, models, method=method, sequential=True)
    scales, bounds = GuidanceScales.per_clip([SETTINGS]), (jnp.int32(0), jnp.int32(STEPS))
    arguments = (conditions_of(ONE), tables, scales, state, draws, *bounds)
    after = jax.eval_shape(denoise, tiny.micro().params, *arguments)
    for kept, before in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (kept.shape, kept.dtype) == (before.shape, before.dtype)
