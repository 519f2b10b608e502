"""The three stages of a sample as pure functions: encode, denoise, decode."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, PyTree

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.diffusion.caches import CacheTables, cache_tables
from dynamicrafter_jax.diffusion.guidance import (
    ConditionalDenoiser,
    GuidedCarry,
    guided_denoiser,
)
from dynamicrafter_jax.diffusion.loop import Carry, LoopState, initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import Schedule, make_grid
from dynamicrafter_jax.diffusion.solvers import Coefficients, Solver, named_solver
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.autoencoder import FRAMES, Posterior
from dynamicrafter_jax.models.partitioning import WITHIN_FRAMES, constrain, map_in_chunks
from dynamicrafter_jax.sampling.noise import Noise
from dynamicrafter_jax.sampling.settings import GuidanceScales, SamplingSettings


class Method(NamedTuple):
    """How steps are taken; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        solver: Takes one step.
        depth: Outermost blocks of the U-Net that every step runs; None if each runs all of it.
        carry: Shapes and types of what the caches keep between steps, for one clip.
    """

    solver: Solver
    depth: int | None
    carry: Carry


class Tables(NamedTuple):
    """What differs from step to step: arrays with one row per step, in sampling order.

    Attributes:
        coefficients: The solver's.
        caches: What each step computes anew.
    """

    coefficients: Coefficients
    caches: CacheTables


def make_steps(
    models: Models, schedule: Schedule, settings: SamplingSettings
) -> tuple[Method, Tables]:
    """Returns how the settings ask for steps to be taken.

    Raises:
        UserError: The settings do not fit the schedule or the networks.
    """
    solver = named_solver(settings.solver, schedule.parameterization)
    grid = make_grid(schedule, settings.spacing, settings.steps)
    caches = cache_tables(
        len(grid.timestep),
        num_passes=settings.num_passes,
        max_depth=models.unet.max_depth,
        deep_cache_interval=settings.deep_cache_interval,
        deep_cache_depth=settings.deep_cache_depth,
        guidance_start=settings.guidance_start,
        guidance_stop=settings.guidance_stop,
        guidance_reuse_interval=settings.guidance_reuse_interval,
    )
    depth = None if caches.deep is None else settings.deep_cache_depth
    shape, passes = latent_shape(models, settings), settings.num_passes
    carry: Carry = ()
    if depth is not None:
        carry = models.unet.deep_feature((passes, *shape), depth)
    if caches.guidance is not None:
        differences: Any = jax.ShapeDtypeStruct((passes - 1, *shape), jnp.float32)
        carry = GuidedCarry(carry, differences)
    method = Method(solver, depth, carry)
    return method, Tables(solver.coefficients(grid, settings.eta), caches)


def start(method: Method, noise: Noise, *, shape: tuple[int, int, int, int]) -> LoopState:
    """Returns the state before the first step: the initial noise of clips of `shape`."""
    x = noise.initial(shape)

    def empty(kept: jax.ShapeDtypeStruct) -> Array:
        rows = jnp.zeros((x.shape[0] * kept.shape[0], *kept.shape[1:]), kept.dtype)
        return constrain(rows, WITHIN_FRAMES[:2])

    return initial_state(method.solver, x, jax.tree.map(empty, method.carry))


def latent_shape(models: Models, settings: SamplingSettings) -> tuple[int, int, int, int]:
    """Returns (t, h, w, z) of a clip's latents; sides are rounded up to what the U-Net needs."""
    multiple = models.vae.downsampling * models.unet.size_multiple
    h, w = (math.ceil(side / multiple) * multiple for side in (settings.height, settings.width))
    f = models.vae.downsampling
    return settings.num_frames, h // f, w // f, models.vae.z_channels


def encode(
    models: Models,
    params: PyTree,
    first: Float[Array, "b h w 3"],
    last: Float[Array, "b h w 3"] | None,
    ids: Int[Array, "b l"],
    negative_ids: Int[Array, "1 l"],
    fs: Float[Array, " b"],
    noise: Noise,
    *,
    shape: tuple[int, int, int, int],
    num_passes: int,
) -> tuple[Conditioning, ...]:
    """Returns what each guided pass is conditioned on.

    Args:
        models: The networks.
        params: Their parameters.
        first: Images in [-1, 1].
        last: End images for interpolation, the same images for looping, or None.
        ids: Token ids of the prompts.
        negative_ids: Token ids that the unconditional pass reads.
        fs: The model's frame stride or FPS condition.
        noise: Source of the posterior's noise.
        shape: Shape of one clip's latents, (t, h, w, z); images are padded to fit by repeating
            their borders.
        num_passes: 1 for (conditional,); 2 for (conditional, unconditional); 3 for
            (conditional, image only, unconditional).
    """
    guided = num_passes > 1
    encoded = Encoded(
        text=encode_text(models, params, ids),
        image=encode_image(models, params, first),
        first=encode_posterior(models, params, first, shape=shape),
        last=None if last is None else encode_posterior(models, params, last, shape=shape),
        negative=encode_text(models, params, negative_ids) if guided else None,
        no_image=(encode_image(models, params, jnp.zeros_like(first[:1])) if guided else None),
    )
    return assemble(models, encoded, fs, noise, shape=shape, num_passes=num_passes)


class Encoded(NamedTuple):
    """The networks' outputs for texts and images, before any noise.

    Attributes:
        text: States of the prompts.
        image: Context tokens of the images, by groups of queries.
        first: Posterior of the images.
        last: Posterior of the end images, or None.
        negative: States of the text that the unconditional pass reads, for each clip or one for
            all; None without guidance.
        no_image: Context tokens that stand for no image, for all clips; None without guidance.
    """

    text: Float[Array, "b l d"]
    image: Float[Array, "b q m d"]
    first: Posterior
    last: Posterior | None
    negative: Float[Array, "#b l d"] | None
    no_image: Float[Array, "1 q m d"] | None


def encode_text(models: Models, params: PyTree, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns the states of texts, given as token ids."""
    return conditioning.text_context(models, params, ids)


def encode_image(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"]
) -> Float[Array, "b q m d"]:
    """Returns the context tokens of images in [-1, 1]; a zero image stands for no image."""
    return conditioning.image_context(models, params, image)


def encode_posterior(
    models: Models,
    params: PyTree,
    image: Float[Array, "b h w 3"],
    *,
    shape: tuple[int, int, int, int],
) -> Posterior:
    """Returns the VAE's posterior of images in [-1, 1], which are padded to fit `shape`.

    A device encodes one image at a time, so memory does not grow with the batch.
    """
    height, width = (side * models.vae.downsampling for side in shape[1:3])

    def encode(image: Array) -> Posterior:
        return models.apply("vae", params, image, method="encode")

    return map_in_chunks(encode, _pad_to(image, height, width), 1, FRAMES)


def assemble(
    models: Models,
    encoded: Encoded,
    fs: Float[Array, " b"],
    noise: Noise,
    *,
    shape: tuple[int, int, int, int],
    num_passes: int,
) -> tuple[Conditioning, ...]:
    """Returns what each guided pass is conditioned on; see `encode` for the arguments."""
    num_frames, *frame = shape

    def latents(posterior: Posterior, is_last: bool) -> Array:
        drawn = noise.posterior(is_last, tuple(frame))
        return models.vae.scale_factor * posterior.sample(drawn)

    concat = conditioning.concat_latents(
        latents(encoded.first, False),
        num_frames,
        None if encoded.last is None else latents(encoded.last, True),
    )
    conditional = Conditioning(text=encoded.text, image=encoded.image, concat=concat, fs=fs)
    if num_passes == 1:
        return (conditional,)
    assert encoded.negative is not None and encoded.no_image is not None
    negative = jnp.broadcast_to(encoded.negative, encoded.text.shape)
    no_image = jnp.broadcast_to(encoded.no_image, encoded.image.shape)
    unconditional = conditional._replace(text=negative, image=no_image)
    if num_passes == 2:
        return conditional, unconditional
    return conditional, conditional._replace(text=negative), unconditional


def denoise(
    models: Models,
    params: PyTree,
    conditions: tuple[Conditioning, ...],
    tables: Tables,
    scales: GuidanceScales,
    state: LoopState,
    noise: Noise,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    method: Method,
    sequential: bool,
) -> LoopState:
    """Runs steps `start` to `stop` of one compiled loop on a clip's latents.

    The bounds are traced, so the same program runs all steps at once or, to show progress, a few at
    a time. So are the tables; the program depends only on which of them are there.

    Args:
        models: The networks.
        params: Their parameters.
        conditions: What each guided pass is conditioned on, from `encode`.
        tables: From `make_steps`.
        scales: Guidance scales of each clip.
        state: From `start` or an earlier call.
        noise: Source of the solver's fresh noise.
        start: First step.
        stop: One past the last step.
        method: From `make_steps`.
        sequential: Whether to run one guided pass after another.
    """
    coefficients, caches = tables
    denoiser = guided_denoiser(
        _unet_pass(models, params, caches, method.depth),
        conditions,
        guidance_scale=scales.text,
        image_guidance_scale=scales.image,
        guidance_rescale=scales.rescale,
        sequential=sequential,
        tables=caches.guidance,
    )
    shape = state.x.shape[1:]
    return run_steps(
        denoiser, method.solver, state, coefficients, lambda i: noise.step(i, shape), start, stop
    )


def decode(
    models: Models,
    params: PyTree,
    latents: Float[Array, "b t h w z"],
    *,
    height: int,
    width: int,
    vae_frames: int,
) -> Float32[Array, "b t {height} {width} 3"]:
    """Returns the unclipped video of scaled latents; a device decodes `vae_frames` at a time."""

    def decode_frames(frames: Array) -> Array:
        z = frames / models.vae.scale_factor
        video = models.apply("vae", params, z, method="decode")[:, :height, :width]
        return video.astype(jnp.float32)

    b, t, *frame = latents.shape
    video = map_in_chunks(decode_frames, latents.reshape(b * t, *frame), vae_frames, FRAMES)
    return video.reshape(b, t, *video.shape[1:])


def _unet_pass(
    models: Models, params: PyTree, caches: CacheTables, depth: int | None
) -> ConditionalDenoiser:
    """Returns a pass of the U-Net, which carries its deep feature, or nothing without a depth."""
    if depth is None:
        unet = conditioning.conditioned_unet(models, params)
        return lambda x, timestep, index, condition, carry: (unet(x, timestep, condition), carry)
    reusing = conditioning.reusing_unet(models, params, depth)

    def run(
        x: Array, timestep: Array, index: Array, condition: Conditioning, deep: Carry
    ) -> tuple[Array, Carry]:
        return jax.lax.cond(
            jnp.asarray(caches.deep)[index],
            lambda: reusing(x, timestep, condition),
            lambda: reusing(x, timestep, condition, deep),
        )

    return run


def _pad_to(image: Float[Array, "b h w 3"], height: int, width: int) -> Float[Array, "b h2 w2 3"]:
    """Repeats the last row and column up to (height, width)."""
    _, h, w, _ = image.shape
    return jnp.pad(image, ((0, 0), (0, height - h), (0, width - w), (0, 0)), mode="edge")
