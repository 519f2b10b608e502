"""Dual-stream image injection, for both training and sampling.

An image enters the U-Net twice (arXiv 2310.12190, sections 3.2 and 3.3): its CLIP tokens, through
the projector, as a context in addition to the text; its VAE latent, concatenated to the noisy
latents.
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
    """All inputs of the U-Net besides the noisy latents and the timestep.

    Attributes:
        text: States of the text tokens.
        image: Context tokens of the image, by the projector's groups of queries. For each pass,
            `frame_context` chooses the groups that a frame reads.
        concat: Scaled image latents to concatenate, zero where a frame is free.
        fs: Frame stride (256) or FPS (512, 1024).
        queries: The group of each frame; None for the projector's rule for clips of this length.
    """

    text: Float[Array, "b l d"]
    image: Float[Array, "b q m d"]
    concat: Float[Array, "b t h w z"]
    fs: Num[Array, " b"]
    queries: Int[Array, "b t"] | None = None

    def of_frames(self, frames: slice | Int[Array, " k"]) -> "Conditioning":
        """Returns the condition of some frames of a clip, as a clip of their own.

        Without `queries`, they read the same groups as the frames of any clip of that length.
        """
        queries = None if self.queries is None else self.queries[:, frames]
        return self._replace(concat=self.concat[:, frames], queries=queries)


def nearest_queries(num_frames: int, video_length: int) -> Int[np.ndarray, " t"]:
    """Returns, for each frame, the index of the nearest group of the projector's queries.

    The first frame reads the first of `video_length` groups and the last frame the last; frames in
    between read the group at the nearest relative position (halves round up). A single frame reads
    the first group.
    """
    if num_frames == 1:
        return np.zeros(1, int)
    frame = np.arange(num_frames)
    span = num_frames - 1
    return (2 * frame * (video_length - 1) + span) // (2 * span)


def text_context(models: Models, params: PyTree, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns the text tower's states for token ids."""
    return models.apply("text_encoder", params, ids)


def image_context(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"]
) -> Float[Array, "b q m d"]:
    """Returns the context tokens of an image in [-1, 1], by groups of queries.

    A zero image gives the unconditional context.
    """
    return project_tokens(models, params, image_tokens(models, params, image))


def image_tokens(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"]
) -> Float[Array, "b n e"]:
    """Returns the vision tower's tokens for an image in [-1, 1]."""
    pixels = preprocess(image, models.image_encoder.image_size)
    return models.apply("image_encoder", params, pixels)


def project_tokens(
    models: Models, params: PyTree, tokens: Float[Array, "b n e"]
) -> Float[Array, "b q m d"]:
    """Returns the context tokens for the vision tower's tokens, by groups of queries."""
    return models.apply("projector", params, tokens)


def frame_context(
    models: Models, condition: Conditioning, num_frames: int
) -> Float[Array, "b *frames m d"]:
    """Returns the image context that the frames of one pass read.

    In a clip of the projector's `video_length`, each frame reads the tokens of its own queries,
    (b, t, m, d). In clips of other lengths, every frame of the release reads all tokens,
    (b, q m, d); the projector's `other_lengths` may choose the nearest queries instead,
    (b, t, m, d).

    Args:
        models: The networks.
        condition: The condition; its `queries`, if any, take precedence over that rule.
        num_frames: Number of frames in the pass.
    """
    image, projector = condition.image, models.projector
    if condition.queries is not None:
        return jax.vmap(lambda clip, chosen: clip[chosen])(image, condition.queries)
    if num_frames == projector.video_length or projector.other_lengths == "nearest":
        # Taken by index although it may be all of them in order: each device then takes those of
        # its own frames, where XLA would else split the projector by frames and gather inside it.
        return image[:, nearest_queries(num_frames, projector.video_length)]
    b, q, m, d = image.shape
    return image.reshape(b, q * m, d)


def concat_latents(
    first: Float[Array, "b h w z"],
    num_frames: int,
    last: Float[Array, "b h w z"] | None = None,
) -> Float[Array, "b t h w z"]:
    """Returns the latents to concatenate to every frame's noise.

    Args:
        first: Latents of the image; without `last`, every frame gets them.
        num_frames: Number of frames in the clip.
        last: Latents of the end image, for interpolation and looping: the first frame then gets
            `first`, the last frame `last`, and the frames in between zeros.
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
        dropout_keys: A key for each clip, in training; without them, there is no dropout.
    """

    def predict(
        x: Float[Array, "b t h w z"], timestep: Num[Array, " b"], condition: Conditioning
    ) -> Float[Array, "b t h w z"]:
        inputs = _unet_inputs(models, x, timestep, condition)
        return models.apply("unet", params, *inputs, dropout_keys)

    return predict


def reusing_unet(models: Models, params: PyTree, depth: int) -> Callable[..., tuple[Array, Array]]:
    """Returns the U-Net as a function of noisy latents, timestep, `Conditioning` and deep feature.

    It returns the prediction and the deep feature, which is the given one, or is computed if None
    is given; see `UNet.reusing`.

    Args:
        models: The networks.
        params: Their parameters.
        depth: Number of outermost input and output blocks, which are always run.
    """

    def predict(
        x: Float[Array, "b t h w z"],
        timestep: Num[Array, " b"],
        condition: Conditioning,
        deep: Float[Array, "b t h2 w2 c"] | None = None,
    ) -> tuple[Float[Array, "b t h w z"], Float[Array, "b t h2 w2 c"]]:
        inputs = _unet_inputs(models, x, timestep, condition)
        return models.apply("unet", params, *inputs, None, deep, depth, method="reusing")

    return predict


def _unet_inputs(
    models: Models, x: Array, timestep: Array, condition: Conditioning
) -> tuple[Array, ...]:
    """Returns what the U-Net takes."""
    x = jnp.concatenate([x, condition.concat.astype(x.dtype)], axis=-1)
    image = frame_context(models, condition, x.shape[1])
    return x, timestep, condition.text, image, condition.fs
