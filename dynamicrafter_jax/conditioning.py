"""The dual-stream image injection, written once for training and sampling.

An image enters the U-Net twice (arXiv 2310.12190, sections 3.2 and 3.3): its CLIP tokens, through
the projector, as a context beside the text; its VAE latent, concatenated to the noisy latents.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.clip import preprocess


class Conditioning(NamedTuple):
    """All that the U-Net is told beside the noisy latents and the timestep.

    Attributes:
        text: States of the text tokens.
        image: Context tokens of the image: of each frame, (b, t, n, d), or for all, (b, n, d).
        concat: Scaled image latents to concatenate, zero where a frame is free.
        fs: Frame stride (256) or FPS (512, 1024).
    """

    text: Float[Array, "b l d"]
    image: Float[Array, "b *frames n d"]
    concat: Float[Array, "b t h w z"]
    fs: Num[Array, " b"]


def nearest_queries(num_frames: int, video_length: int) -> Int[np.ndarray, " t"]:
    """Returns which of the projector's `video_length` groups of queries is nearest to each frame.

    The first frame reads the first group and the last frame the last, frames between read the
    nearest in proportion (halves upwards); a single frame reads the first.
    """
    if num_frames == 1:
        return np.zeros(1, int)
    frame = np.arange(num_frames)
    span = num_frames - 1
    return (2 * frame * (video_length - 1) + span) // (2 * span)


def text_context(models: Models, params: PyTree, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns the text tower's states of token ids."""
    return models.apply("text_encoder", params, ids)


def image_context(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"], num_frames: int
) -> Float[Array, "b *frames n d"]:
    """Returns the context tokens that `num_frames` frames read of an image in [-1, 1].

    A zero image gives the unconditional context; for the shape see `project_tokens`.
    """
    return project_tokens(models, params, image_tokens(models, params, image), num_frames)


def image_tokens(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"]
) -> Float[Array, "b n e"]:
    """Returns the vision tower's tokens of an image in [-1, 1]."""
    pixels = preprocess(image, models.image_encoder.image_size)
    return models.apply("image_encoder", params, pixels)


def project_tokens(
    models: Models,
    params: PyTree,
    tokens: Float[Array, "b n e"],
    num_frames: int,
    frames: Int[Array, "b k"] | None = None,
) -> Float[Array, "b *frames m d"]:
    """Returns the context that a clip's frames read of the vision tower's tokens.

    In a clip of the projector's `video_length` each frame reads the tokens of its own queries,
    (b, t, m, d). In any other the release lets every frame read all tokens, (b, m, d); the
    projector's `other_lengths` may choose the nearest queries instead, (b, t, m, d).

    Args:
        models: The networks.
        params: Their parameters.
        tokens: All tokens of the vision tower.
        num_frames: Frames of the clip.
        frames: Which of them are wanted where each has tokens of its own; None for all.
    """
    projector = models.projector
    context = models.apply("projector", params, tokens)
    if num_frames != projector.video_length:
        if projector.other_lengths != "nearest":
            b, t, n, d = context.shape
            return context.reshape(b, t * n, d)
        context = context[:, nearest_queries(num_frames, projector.video_length)]
    if frames is None:
        return context
    return jax.vmap(lambda clip, chosen: clip[chosen])(context, frames)


def concat_latents(
    first: Float[Array, "b h w z"],
    num_frames: int,
    last: Float[Array, "b h w z"] | None = None,
) -> Float[Array, "b t h w z"]:
    """Returns the latents to concatenate to every frame's noise.

    Args:
        first: Latents of the image; without `last`, every frame gets them.
        num_frames: Frames of the clip.
        last: Latents of the end image, for interpolation and looping: then the first frame gets
            `first`, the last frame `last`, and the frames between zeros.
    """
    b, h, w, z = first.shape
    if last is None:
        return jnp.broadcast_to(first[:, None], (b, num_frames, h, w, z))
    between = jnp.zeros((b, num_frames - 2, h, w, z), first.dtype)
    return jnp.concatenate([first[:, None], between, last[:, None]], axis=1)


def conditioned_unet(
    models: Models, params: PyTree, dropout_keys: Key[Array, " b"] | None = None
) -> Callable[..., Array]:
    """Returns the U-Net as a function of noisy latents, timestep and `Conditioning`.

    Args:
        models: The networks.
        params: Their parameters.
        dropout_keys: One a clip, in training; without them nothing is dropped.
    """

    def predict(
        x: Float[Array, "b t h w z"], timestep: Num[Array, " b"], condition: Conditioning
    ) -> Float[Array, "b t h w z"]:
        x = jnp.concatenate([x, condition.concat.astype(x.dtype)], axis=-1)
        text, image, fs = condition.text, condition.image, condition.fs
        return models.apply("unet", params, x, timestep, text, image, fs, dropout_keys)

    return predict
