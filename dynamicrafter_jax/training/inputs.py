"""The inputs of a training step: a batch of clips, and its latents and conditions."""

from typing import Literal, NamedTuple, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PyTree, UInt8, UInt32

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.autoencoder import FRAMES, Posterior
from dynamicrafter_jax.models.partitioning import map_in_chunks
from dynamicrafter_jax.training.keys import Stream, streams

Concat = Literal["frame", "ends", "either", "nothing"]
"""What is concatenated to the noise: the conditioning frame's latent, for every frame; the first
and last frames' latents, at the ends (interpolation); either of these for each clip, so that one
model learns both; nothing (the paper's first two stages)."""


QUARTERS = 4
"""Parts of the diffusion process whose losses are reported separately."""


class ClipLosses(NamedTuple):
    """The losses of the clips in a batch.

    Attributes:
        loss: Loss of each clip.
        quarter: The quarter of the diffusion process that it is for, least noisy first; -1 for
            none.
    """

    loss: Float32[Array, " b"]
    quarter: Int32[Array, " b"]


class Batch(NamedTuple):
    """Clips from the loader, read from videos or from a cache of the networks' outputs.

    A clip comes as `video` or as `moments`, its prompt as `ids` or `text`, its conditioning image
    as a frame of `video`, as `image`, or as `vision`; absent fields are None.

    Attributes:
        sample_index: Number of the sample in the run, which determines all of its randomness.
        weight: 1, or 0 for a clip that could not be read.
        fs: The model's frame stride or FPS condition.
        frame: Which of the frames is the conditioning image.
        keep_image: 1, or 0 if the image condition is dropped.
        ends: Whether both ends of the clip are given; used with concat "either".
        places: Numbers in the clip of the frames that were read, in order; None if all were.
        video: Frames.
        moments: Mean and log-variance of the VAE's posterior, unscaled, of each frame.
        ids: Token ids of the prompt.
        text: States of the text tower.
        image: The conditioning image.
        vision: Tokens of the vision tower.
    """

    sample_index: UInt32[Array, " b"]
    weight: Float32[Array, " b"]
    fs: Float32[Array, " b"]
    frame: Int[Array, " b"]
    keep_image: Float32[Array, " b"]
    ends: Bool[Array, " b"] | None = None
    places: Int[Array, "b t"] | None = None
    video: UInt8[Array, "b t h w 3"] | None = None
    moments: Float[Array, "b t h2 w2 moments"] | None = None
    ids: Int[Array, "b l"] | None = None
    text: Float[Array, "b l d"] | None = None
    image: UInt8[Array, "b h w 3"] | None = None
    vision: Float[Array, "b n e"] | None = None


def posteriors(models: Models, params: PyTree, batch: Batch, vae_frames: int) -> Posterior:
    """Returns the VAE's posterior of every frame, (b, t, h, w, z), encoding only if needed.

    Args:
        models: The networks.
        params: Their parameters.
        batch: The clips.
        vae_frames: Frames that each device encodes at once.
    """
    if batch.moments is not None:
        mean, logvar = jnp.split(batch.moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))
    assert batch.video is not None, "a batch needs videos or moments"

    def encode(frames: Array) -> Posterior:
        return models.apply("vae", params, pixels(frames), method="encode")

    b, t, *frame = batch.video.shape
    frames = batch.video.reshape(b * t, *frame)
    posterior = map_in_chunks(encode, frames, vae_frames, FRAMES)
    return jax.tree.map(lambda moment: moment.reshape(b, t, *moment.shape[1:]), posterior)


def noisy_clips(
    models: Models,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    concat: Concat,
    vae_frames: int,
) -> tuple[Float[Array, "b t h w z"], Conditioning, Float[Array, "b t h w z"]]:
    """Returns the scaled latents of clips, their conditions, and noise to add to them.

    Args:
        models: The networks.
        params: Their parameters.
        batch: The clips.
        keys: A key for each clip.
        concat: What to concatenate.
        vae_frames: Frames that each device encodes at once.
    """
    posterior = posteriors(models, params, batch, vae_frames)
    latents = clip_latents(models, posterior, streams(keys, Stream.POSTERIOR))
    condition = clip_condition(models, params, batch, latents, concat)
    return latents, condition, normal(streams(keys, Stream.NOISE), latents.shape[1:])


def clip_latents(
    models: Models, posterior: Posterior, keys: Key[Array, " b"]
) -> Float[Array, "b t h w z"]:
    """Returns scaled latents sampled from the posterior, with a key for each clip."""
    return models.vae.scale_factor * posterior.sample(normal(keys, posterior.mean.shape[1:]))


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    """Returns standard normal draws of a shape for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def clip_condition(
    models: Models,
    params: PyTree,
    batch: Batch,
    latents: Float[Array, "b t h w z"],
    concat: Concat,
) -> Conditioning:
    """Returns the U-Net's condition for the clips.

    Args:
        models: The networks.
        params: Their parameters.
        batch: The clips.
        latents: Their scaled latents, from which the concatenated ones are taken.
        concat: What to concatenate.
    """
    match concat:
        case "frame":
            concatenated = _frame_latents(latents, batch)
        case "ends":
            concatenated = _end_latents(latents)
        case "either":
            assert batch.ends is not None, "'either' needs to know which"
            concatenated = jnp.where(
                batch.ends[:, None, None, None, None],
                _end_latents(latents),
                _frame_latents(latents, batch),
            )
        case "nothing":
            concatenated = jnp.zeros_like(latents)
        case _:
            assert_never(concat)
    text = batch.text
    if text is None:
        assert batch.ids is not None, "a batch needs token ids or states"
        text = conditioning.text_context(models, params, batch.ids)
    tokens = batch.vision
    if tokens is None:
        tokens = conditioning.image_tokens(models, params, conditioning_image(batch))
    image = conditioning.project_tokens(models, params, tokens)
    # Frames are left out only if each frame has queries of its own (`draws.ClipSettings`).
    return Conditioning(text, image, concatenated, batch.fs, queries=batch.places)


def _frame_latents(latents: Float[Array, "b t h w z"], batch: Batch) -> Float[Array, "b t h w z"]:
    first = jax.vmap(lambda clip, frame: clip[frame])(latents, batch.frame)
    return conditioning.concat_latents(first, latents.shape[1])


def _end_latents(latents: Float[Array, "b t h w z"]) -> Float[Array, "b t h w z"]:
    return conditioning.concat_latents(latents[:, 0], latents.shape[1], latents[:, -1])


def conditioning_image(batch: Batch) -> Float32[Array, "b h w 3"]:
    """Returns the conditioning images in [-1, 1]; dropped ones are all zero."""
    image = batch.image
    if image is None:
        assert batch.video is not None, "a batch needs videos, images or vision tokens"
        image = jax.vmap(lambda clip, frame: clip[frame])(batch.video, batch.frame)
    return pixels(image) * batch.keep_image[:, None, None, None]


def pixels(frames: UInt8[Array, "*b h w 3"]) -> Float32[Array, "*b h w 3"]:
    """Returns 8-bit pixels in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0
