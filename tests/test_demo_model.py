"""The demo model that ships was trained: it knows pictures, and what words do to them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.data.synthetic import Renderer, draw_scene, trajectory
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.training import inputs
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.weights import names

PANS = (4, 40, 43, 45)  # clips of the test split in which the camera goes left or right
OPPOSITE = {"left": "right", "right": "left"}


@pytest.fixture(scope="module")
def demo() -> ImageToVideo:
    return ImageToVideo.from_pretrained("demo")


def video(number: int) -> np.ndarray:
    scene = draw_scene(number, "test")
    return Renderer(scene, 64, 64).frames(trajectory(scene, 16))


def test_it_is_small():
    assert names.find_model("demo").stat().length <= 25e6


def test_its_vae_reconstructs(demo):
    frames = np.stack([video(number)[0] for number in range(8)])
    image = jnp.asarray(frames / 127.5 - 1, jnp.float32)
    reconstructed = jax.jit(functools.partial(demo.models.apply, "vae"))(demo.params, image)
    error = np.asarray(reconstructed - image)
    assert 10 * np.log10(4 / np.square(error).mean()) > 28.5  # decibels


def test_it_knows_left_from_right(demo):
    """From noise alone, it comes nearer to a clip under its caption than under the opposite."""
    captions = [draw_scene(number, "test").caption for number in PANS]
    opposite = [re.sub("left|right", lambda word: OPPOSITE[word[0]], text) for text in captions]
    assert all(one != other for one, other in zip(captions, opposite, strict=True))
    batch = Batch(
        sample_index=jnp.arange(len(PANS), dtype=jnp.uint32),
        weight=jnp.ones(len(PANS)),
        fs=jnp.asarray([draw_scene(number, "test").fps for number in PANS], jnp.float32),
        frame=jnp.zeros(len(PANS), jnp.int32),
        keep_image=jnp.ones(len(PANS)),
        video=jnp.asarray(np.stack([video(number) for number in PANS])),
    )

    @jax.jit
    def error(params, ids):
        posterior = inputs.posteriors(demo.models, params, batch, 64)
        latents = demo.models.vae.scale_factor * posterior.mean
        told = batch._replace(ids=ids)
        condition = inputs.clip_condition(demo.models, params, told, latents, "frame")
        unet = conditioning.conditioned_unet(demo.models, params, None)
        last = jnp.full(len(PANS), demo.config.diffusion.timesteps - 1)
        noise = jax.random.normal(jax.random.key(0), latents.shape)
        # At the last timestep there is noise alone, and v is the latents, negative.
        return jnp.square(unet(noise, last, condition) + latents).mean((1, 2, 3, 4))

    length = demo.config.text_encoder.context_length
    right, wrong = (
        np.asarray(error(demo.params, jnp.asarray(tokenize(texts, length), jnp.int32)))
        for texts in (captions, opposite)
    )
    assert (right < 0.8 * wrong).all(), (captions, right, wrong)
