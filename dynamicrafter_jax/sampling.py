"""The three stages of a sample as pure functions: encode, denoise, decode; and their settings."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.diffusion.guidance import guided_denoiser
from dynamicrafter_jax.diffusion.loop import LoopState, run_steps
from dynamicrafter_jax.diffusion.solver import Coefficients, Solver
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.autoencoder import FRAMES, Posterior
from dynamicrafter_jax.models.partitioning import map_in_chunks
from dynamicrafter_jax.noise import Noise


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """The config section `sampling`, checked.

    Attributes:
        height: Pixels of a frame; any number, padded inside to what the networks need.
        width: Pixels of a frame.
        num_frames: Frames of the video.
        steps: Solver steps, 1 to 1000.
        eta: 0 (deterministic) to 1.
        guidance_scale: Of text and image together, or of the text alone where
            `image_guidance_scale` is set. 1 without the latter means no guidance.
        image_guidance_scale: Of the image; None for one scale.
        guidance_rescale: 0 to 1.
        spacing: "uniform" or "uniform_trailing".
        negative_prompt: What the unconditional pass reads.
        fps: The model's `fs` condition: frame stride (256) or FPS (512, 1024).
        video_fps: Frames a second of the written file.
        seed: Of all random draws.
        sequential_guidance: One guided pass after another, to save memory.
        vae_frames: Frames that the VAE works on at once, on each device.
        fit: "crop" for pictures that fill height x width, or "letterbox" for whole pictures and
            videos of their aspect, within height x width.
    """

    height: int
    width: int
    num_frames: int
    steps: int
    eta: float
    guidance_scale: float
    image_guidance_scale: float | None
    guidance_rescale: float
    spacing: str
    negative_prompt: str
    fps: float
    video_fps: float
    seed: int
    sequential_guidance: bool
    vae_frames: int
    fit: Literal["crop", "letterbox"] = "crop"

    def __post_init__(self) -> None:
        at_least = {"height": 8, "width": 8, "num_frames": 1, "vae_frames": 1, "seed": 0, "fps": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"sampling.{name} is {getattr(self, name)}: at least {least}")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"sampling.steps is {self.steps}: choose from 1 to 1000")
        if self.seed >= 2**32:
            raise UserError(f"sampling.seed is {self.seed}: choose one below 2^32")
        if self.video_fps <= 0:
            raise UserError(f"sampling.video_fps is {self.video_fps}: it must be above 0")
        if not 0 <= self.eta <= 1:
            raise UserError(
                f"sampling.eta is {self.eta}: choose from 0 (deterministic) to 1 (as noisy as DDPM)"
            )
        if self.spacing not in ("uniform", "uniform_trailing"):
            raise UserError(
                f"sampling.spacing is {self.spacing!r}: choose 'uniform' or 'uniform_trailing'"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"sampling.guidance_rescale is {self.guidance_rescale}: 0 to 1")
        for name in ("guidance_scale", "image_guidance_scale", "fps", "video_fps"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise UserError(f"sampling.{name} is not a finite number")

    @classmethod
    def from_config(cls, section: ConfigDict, **overrides: object) -> "SamplingSettings":
        """Builds settings from a config section, some of them overridden.

        Raises:
            UserError: If a name is unknown or missing, or a value out of range.
        """
        return settings_of(cls, "sampling", section, **overrides)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and number of frames, which decide the compiled programs."""
        return self.height, self.width, self.num_frames

    @property
    def num_passes(self) -> int:
        """Passes of the U-Net a step: 1 without guidance, 2, or 3 with two scales."""
        if self.image_guidance_scale is not None:
            return 3
        return 1 if self.guidance_scale == 1 else 2


class GuidanceScales(NamedTuple):
    """Traced scales, one a clip: changing one does not recompile."""

    text: Float32[Array | np.ndarray, " *b"]
    image: Float32[Array | np.ndarray, " *b"]
    rescale: Float32[Array | np.ndarray, " *b"]

    @classmethod
    def per_clip(cls, settings: Sequence[SamplingSettings]) -> "GuidanceScales":
        """Takes the scales of each clip of a batch."""
        rows = [
            (one.guidance_scale, one.image_guidance_scale or 0.0, one.guidance_rescale)
            for one in settings
        ]
        return cls(*np.asarray(rows, np.float32).T)


def latent_shape(models: Models, settings: SamplingSettings) -> tuple[int, int, int, int]:
    """Returns (t, h, w, z) of a clip's latents; sides are rounded up to what the U-Net takes."""
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
        noise: Where the posterior's noise comes from.
        shape: Latents of one clip, (t, h, w, z); images are padded to it by their borders.
        num_passes: 1 for (conditional,); 2 for (conditional, unconditional); 3 for
            (conditional, image only, unconditional).
    """
    guided = num_passes > 1
    encoded = Encoded(
        text=encode_text(models, params, ids),
        image=encode_image(models, params, first, num_frames=shape[0]),
        first=encode_posterior(models, params, first, shape=shape),
        last=None if last is None else encode_posterior(models, params, last, shape=shape),
        negative=encode_text(models, params, negative_ids) if guided else None,
        no_image=(
            encode_image(models, params, jnp.zeros_like(first[:1]), num_frames=shape[0])
            if guided
            else None
        ),
    )
    return assemble(models, encoded, fs, noise, shape=shape, num_passes=num_passes)


class Encoded(NamedTuple):
    """What the networks make of texts and images, before any noise.

    Attributes:
        text: States of the prompts.
        image: Context tokens of the images, of each frame or for all frames.
        first: Posterior of the images.
        last: Posterior of the end images, or None.
        negative: States of what the unconditional pass reads, one for each clip or for all; None
            without guidance.
        no_image: Context tokens of no image, for all clips; None without guidance.
    """

    text: Float[Array, "b l d"]
    image: Float[Array, "b *frames n d"]
    first: Posterior
    last: Posterior | None
    negative: Float[Array, "#b l d"] | None
    no_image: Float[Array, "1 *frames n d"] | None


def encode_text(models: Models, params: PyTree, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns the states of texts, given as token ids."""
    return conditioning.text_context(models, params, ids)


def encode_image(
    models: Models, params: PyTree, image: Float[Array, "b h w 3"], *, num_frames: int
) -> Float[Array, "b *frames n d"]:
    """Returns the context tokens of images in [-1, 1]; a zero image gives those of none."""
    return conditioning.image_context(models, params, image, num_frames)


def encode_posterior(
    models: Models,
    params: PyTree,
    image: Float[Array, "b h w 3"],
    *,
    shape: tuple[int, int, int, int],
) -> Posterior:
    """Returns the VAE's posterior of images in [-1, 1], padded to what `shape` needs.

    A device encodes one image at a time, so that memory does not grow with the batch.
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
    """Returns what each guided pass is conditioned on; arguments are those of `encode`."""
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
    coefficients: Coefficients,
    scales: GuidanceScales,
    state: LoopState,
    noise: Noise,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    solver: Solver,
    sequential: bool,
) -> LoopState:
    """Runs solver steps `start` to `stop` of one compiled loop on a clip's latents.

    The bounds are traced: running all steps at once or a few at a time, to show progress, is
    the same program.
    """
    unet = conditioning.conditioned_unet(models, params)
    denoiser = guided_denoiser(
        lambda x, timestep, condition, carry: (unet(x, timestep, condition), carry),
        conditions,
        guidance_scale=scales.text,
        image_guidance_scale=scales.image,
        guidance_rescale=scales.rescale,
        sequential=sequential,
    )
    shape = state.x.shape[1:]
    return run_steps(
        denoiser, solver, state, coefficients, lambda i: noise.step(i, shape), start, stop
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
    """Returns the video, unclipped, of scaled latents; a device decodes a few frames at a time."""

    def decode_frames(frames: Array) -> Array:
        z = frames / models.vae.scale_factor
        video = models.apply("vae", params, z, method="decode")[:, :height, :width]
        return video.astype(jnp.float32)

    b, t, *frame = latents.shape
    video = map_in_chunks(decode_frames, latents.reshape(b * t, *frame), vae_frames, FRAMES)
    return video.reshape(b, t, *video.shape[1:])


def _pad_to(image: Float[Array, "b h w 3"], height: int, width: int) -> Float[Array, "b h2 w2 3"]:
    """Repeats the last row and column up to (height, width)."""
    _, h, w, _ = image.shape
    return jnp.pad(image, ((0, 0), (0, height - h), (0, width - w), (0, 0)), mode="edge")
