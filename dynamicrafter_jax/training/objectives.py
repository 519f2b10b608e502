"""Training objectives: one loss per clip, as pure functions of parameters, batch and keys.

The release trains the U-Net and the projector with `denoise`, and takes the other networks from
elsewhere. `reconstruct` and `align` train these too, for a model that is trained from scratch, and
`distillation.distill` a model that samples in few steps.
"""

import functools
from typing import Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Key, PyTree

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.diffusion.loss import denoising_loss
from dynamicrafter_jax.diffusion.schedule import Schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.autoencoder import FRAMES
from dynamicrafter_jax.models.partitioning import map_in_chunks
from dynamicrafter_jax.training import inputs
from dynamicrafter_jax.training.distillation import distill
from dynamicrafter_jax.training.equivariance import draw_move, inside, moved
from dynamicrafter_jax.training.inputs import QUARTERS, Batch, ClipLosses, Concat
from dynamicrafter_jax.training.keys import Stream, streams
from dynamicrafter_jax.training.settings import TrainSettings

_NO_VIDEOS = (
    "the objective {!r} needs videos: set data.source to videos or to synthetic:train, instead of "
    "a cache"
)


@runtime_checkable
class Objective(Protocol):
    """A function for the losses of clips, with the networks bound."""

    def __call__(
        self,
        params: PyTree,
        batch: Batch,
        keys: Key[Array, " b"],
        *,
        share: Float32[Array, " b"] | None = None,
        dropout: bool = False,
    ) -> ClipLosses:
        """Returns the loss of each clip.

        Args:
            params: All parameters.
            batch: The clips.
            keys: A key for each clip, which determines all draws.
            share: Where in the diffusion process to evaluate each clip, 0 to 1; random if None.
            dropout: Whether to apply dropout, as in training.
        """
        ...


def make_objective(
    settings: TrainSettings, models: Models, schedule: Schedule, vae_frames: int
) -> Objective:
    """Binds networks and settings to the objective named by `train.objective`.

    Args:
        settings: How a model is trained.
        models: The networks.
        schedule: The noise schedule.
        vae_frames: Frames that each device encodes at once.
    """
    match settings.objective:
        case "denoise":
            return functools.partial(
                denoise,
                models,
                schedule,
                concat=settings.concat,
                vae_frames=vae_frames,
                timestep_power=settings.timestep_power,
            )
        case "distill":
            return functools.partial(
                distill,
                models,
                schedule,
                concat=settings.concat,
                vae_frames=vae_frames,
                lesson=settings.lesson,
            )
        case "reconstruct":
            return functools.partial(
                reconstruct, models, vae_frames, settings.kl_weight, settings.equivariance
            )
        case "align":
            return functools.partial(align, models, settings.temperature, settings.recall_weight)
        case _:
            assert_never(settings.objective)


def denoise(
    models: Models,
    schedule: Schedule,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    *,
    concat: Concat,
    vae_frames: int,
    timestep_power: float = 1.0,
    share: Float32[Array, " b"] | None = None,
    dropout: bool = False,
) -> ClipLosses:
    """Returns the error of the U-Net's prediction for noisy latents (arXiv 2310.12190, Eq. 1).

    Args:
        models: The networks.
        schedule: The noise schedule.
        params: All parameters.
        batch: The clips.
        keys: A key for each clip.
        concat: What is concatenated to the noise.
        vae_frames: Frames that each device encodes at once.
        timestep_power: p: the density of timesteps is proportional to their (p-1)-th power. 1 is
            the release's; larger values favour noisy timesteps, where latents hide what moves.
        share: See `Objective`.
        dropout: Whether to apply the U-Net's dropout.
    """
    latents, condition, noise = inputs.noisy_clips(models, params, batch, keys, concat, vae_frames)
    timesteps = len(schedule.alpha_bar)
    if share is not None:
        timestep = jnp.minimum(share * timesteps, timesteps - 1).astype(jnp.int32)
    else:
        draw = functools.partial(_draw_timestep, timesteps=timesteps, power=timestep_power)
        timestep = jax.vmap(draw)(streams(keys, Stream.TIMESTEP))
    dropout_keys = streams(keys, Stream.DROPOUT) if dropout else None
    unet = conditioning.conditioned_unet(models, params, dropout_keys)

    def predict(x: Array, timestep: Array) -> Array:
        return unet(x, timestep, condition)

    loss = denoising_loss(predict, schedule, latents, noise, timestep)
    return ClipLosses(loss, timestep * QUARTERS // timesteps)


def reconstruct(
    models: Models,
    vae_frames: int,
    kl_weight: float,
    equivariance: float,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    *,
    share: Float32[Array, " b"] | None = None,
    dropout: bool = False,
) -> ClipLosses:
    """Returns the VAE's squared error on frames, with its KL divergence (arXiv 1312.6114, Eq. 10).

    Both are means, over pixels and over latent values. The released VAE was also trained with a
    perceptual and an adversarial loss, which need pretrained networks.

    In some clips, the latents are scaled and turned before they are decoded, and so are the frames
    that the result is compared with (EQ-VAE, arXiv 2502.09509). Latents that move with the picture
    are easier to generate.

    Args:
        models: The networks.
        vae_frames: Frames that each device processes at once.
        kl_weight: Weight of the divergence from a standard normal.
        equivariance: The share of clips whose latents are scaled and turned.
        params: All parameters.
        batch: The clips, as videos.
        keys: A key for each clip, for sampling its latents and its move.
        share: Not used.
        dropout: Whether to scale and turn latents at all, as in training.

    Raises:
        UserError: The batch is from a cache.
    """
    del share
    if batch.video is None:
        raise UserError(_NO_VIDEOS.format("reconstruct"))
    video = inputs.pixels(batch.video)
    posterior = inputs.posteriors(models, params, batch, vae_frames)
    noise = inputs.normal(streams(keys, Stream.POSTERIOR), posterior.mean.shape[1:])
    z = posterior.sample(noise)
    seen = jnp.ones((1, 1, 1, 1, 1), jnp.float32)
    if dropout and equivariance > 0:
        moves = jax.vmap(draw_move, (0, None))(streams(keys, Stream.MOVE), equivariance)
        z, video = (jax.vmap(moved)(frames, moves) for frames in (z, video))
        height, width = video.shape[2:4]
        whole = jax.vmap(inside, (0, None, None))(moves, height, width)
        seen = whole.astype(jnp.float32)[:, None, :, :, None]

    def decode(z: Array) -> Array:
        return models.apply("vae", params, z, method="decode")

    frames = z.reshape(-1, *z.shape[2:])
    decoded = map_in_chunks(decode, frames, vae_frames, FRAMES).reshape(video.shape)
    squares = jnp.square(decoded.astype(jnp.float32) - video)
    error = (squares * seen).mean((1, 2, 3, 4)) / seen.mean((1, 2, 3, 4))
    mean, logvar = posterior
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean((1, 2, 3, 4))
    return ClipLosses(error + kl_weight * divergence, _no_quarter(len(error)))


def align(
    models: Models,
    temperature: float,
    recall_weight: float,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    *,
    share: Float32[Array, " b"] | None = None,
    dropout: bool = False,
) -> ClipLosses:
    """Returns the contrastive loss of a batch's clips and captions (arXiv 2103.00020).

    Added to it is the loss of recalling a caption's words from its states (`recall`): otherwise a
    text tower would soon forget what the frames don't show, such as to which side something moves.

    A caption is represented by the text tower's state of its last token. A clip is represented by
    the projector's output, which should be aligned with text, for its first and its last frame: the
    mean of the tokens for the first frame plus that for the last frame, so that both the content
    and the change can be recognised. Towers and projector train together, and no other parameters
    are needed.

    Args:
        models: The networks.
        temperature: Temperature of the softmax over the clips of the batch.
        recall_weight: Weight of the recall loss.
        params: All parameters.
        batch: The clips, as videos with token ids.
        keys: Not used.
        share: Not used.
        dropout: Not used.

    Raises:
        UserError: The batch is from a cache.
    """
    del keys, share, dropout
    if batch.video is None or batch.ids is None:
        raise UserError(_NO_VIDEOS.format("align"))
    first, last = (inputs.pixels(batch.video[:, place]) for place in (0, -1))
    both = conditioning.image_tokens(models, params, jnp.concatenate([first, last]))
    projected = models.apply("projector", params, both).mean(2)
    b = len(batch.ids)
    clip = _unit(projected[:b, 0] + projected[b:, -1])
    states = conditioning.text_context(models, params, batch.ids)
    end = jnp.argmax(batch.ids, axis=1)  # the end token has the highest id
    text = _unit(jax.vmap(lambda tokens, place: tokens[place])(states, end))
    scores = jnp.einsum("id,jd->ij", clip, text) / temperature
    readable = batch.weight > 0
    scores = jnp.where(readable[:, None] & readable[None], scores, -1e9)
    found = -jnp.diagonal(jax.nn.log_softmax(scores, 0) + jax.nn.log_softmax(scores, 1)) / 2
    embedding = params["text_encoder"]["token_embedding"] / temperature
    found += recall_weight * recall(states, embedding, batch.ids)
    return ClipLosses(found, _no_quarter(b))


def recall(
    states: Float[Array, "b l d"], embedding: Float[Array, "v d"], ids: Int32[Array, "b l"]
) -> Float32[Array, " b"]:
    """Returns the cross-entropy of predicting a caption's words from the mean of its states.

    The probabilities of words are a softmax of the products of the mean with their embeddings. The
    mean of states is what attention reads before it has learned where to look.
    """
    place, end = jnp.arange(ids.shape[1])[None], jnp.argmax(ids, axis=1)
    words = (place > 0) & (place < end[:, None])  # without the start and end tokens
    scores = jax.nn.log_softmax(states.astype(jnp.float32).mean(1) @ embedding.T)
    found = -jnp.take_along_axis(scores, ids, axis=1)
    counts = words.astype(jnp.float32).sum(1)
    return jnp.where(words, found, 0.0).sum(1) / jnp.maximum(counts, 1.0)


def _draw_timestep(key: Key[Array, ""], *, timesteps: int, power: float) -> Array:
    if power == 1.0:
        return jax.random.randint(key, (), 0, timesteps)
    share = jax.random.uniform(key) ** (1.0 / power)
    return jnp.minimum(share * timesteps, timesteps - 1).astype(jnp.int32)


def _unit(x: Float[Array, "b d"]) -> Float32[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def _no_quarter(b: int) -> Int32[Array, " b"]:
    return jnp.full(b, -1, jnp.int32)
