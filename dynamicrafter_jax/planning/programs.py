"""The programs of `train.py` and of sampling, lowered from shapes, without any arrays."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import DTYPES, matmul_precision, networks_of, settings_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.settings import GuidanceScales, SamplingSettings
from dynamicrafter_jax.training import inputs
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.optimizer import make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state
from dynamicrafter_jax.training.step import jit_step, make_train_step
from dynamicrafter_jax.training.throughput import product_flops
from dynamicrafter_jax.weights.load import abstract_params


class PlannedProgram(NamedTuple):
    """A program, ready to be compiled.

    Attributes:
        name: Name of the program.
        lowered: The lowered program, as the compiler takes it.
        held: Bytes of its arguments on a device, without padding, by kind.
        beside: Bytes of parameters that are in memory while it runs although it doesn't read them.
    """

    name: str
    lowered: jax.stages.Lowered
    held: dict[str, int]
    beside: int = 0


def training_programs(
    config: ConfigDict, mesh: Mesh, *, cached: bool = False
) -> Iterator[PlannedProgram]:
    """Yields the training step, and the frozen networks' part of it on its own.

    Args:
        config: As in `configs/`.
        mesh: Devices, of a topology or here.
        cached: Whether batches come from a cache with text and vision, so that VAE and towers don't
            run.

    Raises:
        UserError: A setting is refused.
    """
    settings = settings_of(TrainSettings, "train", config.train)
    sharding.local_rows(mesh, settings.batch_size // settings.accumulation)  # may raise
    models = networks_of(config, choose_attention(mesh))
    models = models._replace(unet=models.unet.clone(remat=settings.remat))
    optimizer = make_optimizer(settings)
    state = abstract_state(abstract_params(config), optimizer, settings, mesh)
    schedule = make_schedule(**config.diffusion.to_dict())
    step = make_train_step(
        make_objective(settings, models, schedule, config.sampling.vae_frames),
        optimizer,
        accumulation=settings.accumulation,
        ema_decay=settings.ema_decay,
        where=jax.tree.map(lambda leaf: leaf.sharding, state.params),
    )
    whole = sharding.replicated(mesh)
    batch = abstract_batch(config, models, mesh, settings.batch_size, cached=cached)
    rng = _like(jax.eval_shape(lambda: jax.random.key(0)), whole)
    jitted = jit_step(step, state, mesh)
    held = {
        "parameters": held_bytes((state.params, state.frozen)),
        "optimizer": held_bytes((state.opt_state, state.step)),
        "averages": held_bytes(state.ema),
    }
    yield PlannedProgram("step", _lower(config, mesh, jitted, state, batch, rng), held)
    if not cached:
        part = settings.batch_size // settings.accumulation
        batch = abstract_batch(config, models, mesh, part)
        encode = functools.partial(_frozen_networks, models, config.sampling.vae_frames)
        everything = state.best_params
        params = {name: everything[name] for name in ("vae", "text_encoder", "image_encoder")}
        lowered = _lower(config, mesh, jax.jit(encode), params, batch)
        yield PlannedProgram("frozen networks", lowered, {"parameters": held_bytes(params)})


def _frozen_networks(models: Models, vae_frames: int, params: PyTree, batch: Batch) -> PyTree:
    """Runs the VAE and the towers on one part of a batch."""
    assert batch.ids is not None
    return (
        inputs.posteriors(models, params, batch, vae_frames),
        conditioning.text_context(models, params, batch.ids),
        conditioning.image_tokens(models, params, inputs.conditioning_image(batch)),
    )


def sampling_programs(
    config: ConfigDict, mesh: Mesh, *, batch_size: int = 1
) -> Iterator[PlannedProgram]:
    """Yields the programs of sampling: "encode", "denoise" and "decode".

    The number of steps is an argument of the second, so its loop counts as one step. Arrays passed
    from one program to the next are assumed to be split as a batch is.

    Args:
        config: As in `configs/`.
        mesh: Devices, of a topology or here.
        batch_size: Clips, padded as `Sampler` does.

    Raises:
        UserError: A setting is refused.
    """
    settings = SamplingSettings.from_config(config.sampling)
    models = networks_of(config, choose_attention(mesh))
    schedule = make_schedule(**config.diffusion.to_dict())
    method, tables = stages.make_steps(models, schedule, settings)
    boxed = abstract_params(config)
    params = jax.tree.map(_like, nn.meta.unbox(boxed), sharding.parameter_shardings(boxed, mesh))
    b = padded_batch(settings, mesh, batch_size)
    whole = sharding.replicated(mesh)
    rows = whole if b % sharding.batch_multiple(mesh) else sharding.batch_sharding(mesh)
    shape = stages.latent_shape(models, settings)
    length = models.text_encoder.context_length

    def program(name: str, function: Callable[..., PyTree], *rest: PyTree) -> PlannedProgram:
        with _in_force(config, mesh):
            traced = jax.jit(function).trace(params, *rest)
            lowered = traced.lower()
        needed = {id(value) for step in traced.jaxpr.jaxpr.eqns for value in step.invars}
        leaves = zip(jax.tree.leaves(params), traced.jaxpr.jaxpr.invars, strict=False)
        read = held_bytes([leaf for leaf, value in leaves if id(value) in needed])
        return PlannedProgram(name, lowered, {"parameters": read}, held_bytes(params) - read)

    def of(where: Sharding, dtype: Any, *size: int) -> Any:
        return jax.ShapeDtypeStruct(size, dtype, sharding=where)

    def made(where: Sharding, function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
        with _in_force(config, mesh):
            results = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda leaf: _like(leaf, where), results)

    first = of(rows, jnp.float32, b, settings.height, settings.width, 3)
    ids, negative_ids = of(rows, jnp.int32, b, length), of(whole, jnp.int32, 1, length)
    fs = of(rows, jnp.float32, b)
    draws = made(rows, lambda: KeyedNoise.from_seed(0, list(range(b))))
    encode = functools.partial(stages.encode, models, shape=shape, num_passes=settings.num_passes)
    arguments = (first, None, ids, negative_ids, fs, draws)
    yield program("encode", encode, *arguments)

    denoise = functools.partial(
        stages.denoise, models, method=method, sequential=settings.sequential_guidance
    )
    yield program(
        "denoise",
        denoise,
        made(rows, encode, params, *arguments),
        # As long as the schedule, so that the program is the same for any number of steps.
        jax.tree.map(lambda rows: of(whole, rows.dtype, len(schedule.alpha_bar)), tables),
        GuidanceScales(*[of(rows, jnp.float32, b)] * 3),
        made(rows, functools.partial(stages.start, method, shape=shape), draws),
        draws,
        *[of(whole, jnp.int32)] * 2,
    )

    size = {"height": settings.height, "width": settings.width}
    decode = functools.partial(stages.decode, models, **size, vae_frames=settings.vae_frames)
    latents = of(rows, jnp.float32, b, *shape)
    yield program("decode", decode, latents)


def padded_batch(settings: SamplingSettings, mesh: Mesh, batch_size: int) -> int:
    """Returns the number of clips in a batch, with those that pad it to the mesh."""
    multiple = sharding.batch_multiple(mesh, settings.passes_at_once)
    return math.ceil(batch_size / multiple) * multiple


def abstract_batch(
    config: ConfigDict, models: Models, mesh: Mesh, batch_size: int, *, cached: bool = False
) -> Batch:
    """Returns the shapes of a batch from videos, or from a cache with text and vision."""
    settings = SamplingSettings.from_config(config.sampling)
    where = sharding.batch_sharding(mesh)
    stored = DTYPES[config.precision.dtype]  # the default type of `data.cache`

    def of(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=where)

    some = config.data.get("frames")  # the configs of older models lack it
    size = some or settings.num_frames, settings.height, settings.width
    f = models.vae.downsampling
    length, image = models.text_encoder.context_length, models.image_encoder
    tokens = 1 + (image.image_size // image.patch_size) ** 2
    latent = size[0], size[1] // f, size[2] // f
    return Batch(
        sample_index=of(jnp.uint32),
        weight=of(jnp.float32),
        fs=of(jnp.float32),
        frame=of(jnp.int32),
        keep_image=of(jnp.float32),
        ends=of(jnp.bool_),
        places=of(jnp.int32, some) if some else None,
        video=None if cached else of(jnp.uint8, *size, 3),
        ids=None if cached else of(jnp.int32, length),
        moments=of(stored, *latent, 2 * models.vae.z_channels) if cached else None,
        text=of(stored, length, models.text_encoder.width) if cached else None,
        vision=of(stored, tokens, image.width) if cached else None,
    )


class ForwardFlops(NamedTuple):
    """Floating-point operations of one forward pass, without guidance, for one clip.

    Products and convolutions count, with two operations per multiply-add, plain attention and
    nothing split: 4.84, 12.54 and 52.28 TFLOP for the U-Nets of the three releases. The original
    implementation takes 0.06 more, since it computes the text's keys and values for every frame.

    Attributes:
        unet: One pass.
        projector: One image.
    """

    unet: int
    projector: int


def forward_flops(config: ConfigDict, params: PyTree) -> ForwardFlops:
    """Counts the forward passes of a config's trained networks; nothing is computed.

    Args:
        config: As in `configs/`.
        params: Abstract parameters by section, unboxed.
    """
    models = networks_of(config)
    t, h, w, z = stages.latent_shape(models, SamplingSettings.from_config(config.sampling))
    length, vision = models.text_encoder.context_length, models.image_encoder
    count = 1 + (vision.image_size // vision.patch_size) ** 2
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    def of(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def unet(params: PyTree, x: jax.Array, timestep: jax.Array, condition: Conditioning) -> Any:
        return conditioning.conditioned_unet(models, params)(x, timestep, condition)

    project = functools.partial(conditioning.project_tokens, models)
    tokens = of(1, count, models.projector.embedding_dim)
    projected: Any = jax.eval_shape(project, params, tokens)
    text = of(1, length, models.unet.context_dim)
    condition = Conditioning(text=text, image=projected, concat=of(1, t, h, w, z), fs=of(1))
    passes = jax.jit(unet).trace(params, of(1, t, h, w, z), of(1), condition)
    return ForwardFlops(
        unet=product_flops(passes.jaxpr),
        projector=product_flops(jax.jit(project).trace(params, tokens).jaxpr),
    )


def held_bytes(tree: PyTree) -> int:
    """Returns the bytes on one device of arrays given as shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _lower(config: ConfigDict, mesh: Mesh, jitted: Any, *arguments: Any) -> jax.stages.Lowered:
    with _in_force(config, mesh):
        return jitted.lower(*arguments)


@contextlib.contextmanager
def _in_force(config: ConfigDict, mesh: Mesh) -> Iterator[None]:
    """Puts the same settings in force as `train.py` and `Sampler` do for tracing."""
    with matmul_precision(config), sharding.use_mesh(mesh):
        yield


def _like(leaf: Any, where: Sharding) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
