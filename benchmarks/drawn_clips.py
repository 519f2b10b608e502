"""Samples drawn clips, with all or some of a model's conditions, and measures the results."""

import functools
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, UInt8
from tracking import Change, find_change

from dynamicrafter_jax import sharding
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.data.synthetic import Motion, Renderer, Scene, Split, draw_scene, trajectory
from dynamicrafter_jax.metrics.fvd import Moments, frechet_distance
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import shown_frames
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize

Video = UInt8[np.ndarray, "t h w 3"]
Videos = UInt8[np.ndarray, "n t h w 3"]

Ablation = Literal["nothing", "prompt", "text", "concat", "image"]
"""What a model is not given: a prompt (it is empty), or any text tokens, concatenated latents or
image tokens."""

ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


class Drawn(NamedTuple):
    """A drawn clip.

    Attributes:
        scene: The scene that it shows.
        video: Its frames.
    """

    scene: Scene
    video: Video


def draw(
    number: int,
    num_frames: int,
    side: int,
    split: Split = "test",
    motions: tuple[Motion, ...] | None = None,
) -> Drawn:
    """Draws a clip, with given motions or its own."""
    scene = draw_scene(number, split, motions=motions)
    return Drawn(scene, Renderer(scene, side, side).frames(trajectory(scene, num_frames)))


class Generator:
    """Samples videos that start from the first frames of drawn clips."""

    def __init__(self, animate: ImageToVideo, batch_size: int, **settings: Any) -> None:
        """Binds a model; `settings` are fields of `SamplingSettings` that replace the config's."""
        self._animate, self._batch_size = animate, batch_size
        self._settings = SamplingSettings.from_config(animate.config.sampling, **settings)
        encode = functools.partial(stages.encode, animate.models)
        self._encode = Program(functools.partial(_encode_without, encode))

    def __call__(
        self, clips: Sequence[Drawn], *, without: Ablation = "nothing", interpolate: bool = False
    ) -> Videos:
        """Returns a video for each clip, with its caption and its frames per second.

        Args:
            clips: The clips.
            without: What the model is not given.
            interpolate: Whether the last frame is given too.
        """
        parts = [
            self._sample(clips[start : start + self._batch_size], start, without, interpolate)
            for start in range(0, len(clips), self._batch_size)
        ]
        return np.concatenate(parts)

    def seconds_per_clip(self, clips: Sequence[Drawn]) -> float:
        """Returns the time to sample a clip, of a batch that is sampled for the second time."""
        batch = clips[: self._batch_size]
        # Not the method of a class that may know the result.
        sample = functools.partial(Generator._sample, self, batch, 0, "nothing", False)
        sample()  # compiles
        started = time.perf_counter()
        sample()
        return (time.perf_counter() - started) / len(batch)

    def _sample(
        self, clips: Sequence[Drawn], first: int, without: Ablation, interpolate: bool
    ) -> Videos:
        count, size = len(clips), self._batch_size
        padded = [*clips, *[clips[-1]] * (size - count)]
        sampler, params = self._animate.sampler, self._animate.params
        length = self._animate.models.text_encoder.context_length
        captions = ["" if without == "prompt" else clip.scene.caption for clip in padded]
        images = np.stack([clip.video[[0, -1]] for clip in padded]).astype(np.float32) / 127.5 - 1
        batch = (
            images[:, 0],
            images[:, 1] if interpolate else None,
            tokenize(captions, length),
            np.asarray([clip.scene.fps for clip in padded], np.float32),
            KeyedNoise.from_seed(self._settings.seed, range(first, first + size)),
        )
        with sampler.in_force():
            start, end, ids, fs, draws = sharding.split_batch(batch, sampler.mesh)
            negative = sharding.replicate(
                tokenize([self._settings.negative_prompt], length), sampler.mesh
            )
            conditions = self._encode(
                params,
                start,
                end,
                ids,
                negative,
                fs,
                draws,
                shape=stages.latent_shape(self._animate.models, self._settings),
                num_passes=self._settings.num_passes,
                without=without,
            )
            settings = [self._settings] * size
            latents = sampler.denoise(params, conditions, settings, draws)
            video = np.asarray(sampler.decode(params, latents, self._settings))
        return shown_frames(video[:count], loop=False)


def _encode_without(
    encode: "functools.partial[tuple[Conditioning, ...]]",
    *arguments: object,
    shape: tuple[int, int, int, int],
    num_passes: int,
    without: Ablation,
) -> tuple[Conditioning, ...]:
    """Encodes, and replaces what the model is not given by zeros."""
    conditions = encode(*arguments, shape=shape, num_passes=num_passes)
    if without in ("nothing", "prompt"):
        return conditions

    def emptied(condition: Conditioning) -> Conditioning:
        return condition._replace(**{without: jnp.zeros_like(getattr(condition, without))})

    return tuple(map(emptied, conditions))


def reconstruct(animate: ImageToVideo, pictures: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """Returns the VAE's reconstructions of pictures, from the means of their latents, in 8 bits."""

    def through(params: dict, images: Array) -> Array:
        return animate.models.apply("vae", params, images)

    images = jnp.asarray(pictures.astype(np.float32) / 127.5 - 1)
    with animate.sampler.in_force():
        decoded = jax.jit(through)(animate.params, images)
    return shown_frames(np.asarray(decoded)[:, None], loop=False)[:, 0]


def psnr(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the PSNR of each of several 8-bit pictures or videos, in dB."""
    error = np.square(made.astype(np.float64) - wanted)
    return 10 * np.log10(255**2 / np.maximum(error.mean(tuple(range(1, error.ndim))), 1e-4))


def find_changes(clips: Sequence[Drawn], videos: Videos, processes: int) -> list[Change]:
    """Returns what has changed in each video, as `tracking.find_change` finds it."""
    arguments = [(clip.scene, video) for clip, video in zip(clips, videos, strict=True)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.starmap(find_change, arguments, chunksize=4)


def simple_features(videos: Videos) -> Float64[np.ndarray, "n 59"]:
    """Returns features that need no network: how much moves, where and when.

    They are, for each of 4 by 4 parts of the frame, the mean difference between neighbouring frames
    and the difference of the last frame from the first; the difference of each frame from the next;
    and the mean and spread of red, green and blue in the first and in the last frame.
    """
    x = videos.astype(np.float64) / 255
    n, t, h, w, _ = x.shape
    parts = x.mean(-1).reshape(n, t, 4, h // 4, 4, w // 4)
    steps = np.abs(np.diff(x.mean(-1), axis=1))
    where = steps.reshape(n, t - 1, 4, h // 4, 4, w // 4).mean((1, 3, 5)).reshape(n, 16)
    cells = parts.mean((3, 5))
    whole = (cells[:, -1] - cells[:, 0]).reshape(n, 16)
    ends = x[:, [0, -1]]
    colours = np.concatenate([ends.mean((2, 3)), ends.std((2, 3))], axis=-1).reshape(n, -1)
    return np.concatenate([where, whole, steps.mean((2, 3)), colours], axis=1)


def feature_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Returns the Fréchet distance of features (n, d), scaled to unit spread over the first."""
    spread = features.std(0) + 1e-6
    return frechet_distance(Moments.of(features / spread), Moments.of(others / spread))
