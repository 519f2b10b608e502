"""The measure that small models are chosen by, on denoisers whose answer is known."""

import benchmark_modules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_clips import clips

from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training.inputs import pixels

(demo_search,) = benchmark_modules.load("demo_search")


@jax.jit
def through_the_vae(params, frames):
    """The mean of the latents of frames, and what is decoded from it."""
    models = tiny.micro().models
    mean = models.apply("vae", params, frames, method="encode").mean
    return mean, models.apply("vae", params, mean, method="decode")


@pytest.mark.parametrize("timestep", [600, 999])
def test_a_model_that_knows_the_clip_reaches_what_the_vae_does(timestep):
    model, batch = tiny.micro(), clips(2)
    schedule = make_schedule(**model.config.diffusion.to_dict())
    frames = pixels(jnp.asarray(batch.video.reshape(-1, *batch.video.shape[2:])))
    mean, decoded = through_the_vae(model.params, frames)
    latents = model.models.vae.scale_factor * mean.reshape(2, 3, *mean.shape[1:])

    @jax.jit
    def clean_clips(params, latents, *given):
        conditions = []

        def knows(x, timesteps, condition):
            conditions.append(condition)
            clean = latents * float(schedule.scale[timestep])
            signal, noise = (
                float(table[timestep]) for table in (schedule.signal_level, schedule.noise_level)
            )
            return signal * (x - signal * clean) / noise - noise * clean

        found = demo_search.clean_clips(model.models, schedule, params, knows, *given)
        (told,) = conditions
        return found, told

    given = (batch.video, batch.ids, batch.fs, np.arange(2), np.asarray(timestep))
    found, told = clean_clips(model.params, latents, *map(jnp.asarray, given))
    np.testing.assert_allclose(found, decoded.reshape(found.shape), atol=2e-4)
    np.testing.assert_allclose(told.concat, latents[:, :1].repeat(3, 1), atol=1e-6)
    assert told.image.shape[:2] == (2, 3)


def test_words_are_worth_what_they_add():
    seen = demo_search.Seen({600: 20.0, 999: 10.0}, {600: 19.0, 999: 8.0}, 30.0)
    other = seen._replace(told={600: 21.0, 999: 11.0})
    assert (seen.mean, seen.gain) == (15.0, 1.5)
    lines = demo_search.table({"worse": seen, "better": other}).splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["better", "worse"]


def test_a_caption_is_held_against_that_of_the_opposite():
    def judge(some, captions, timestep):
        told = [clip.scene.caption == caption for clip, caption in zip(some, captions, strict=True)]
        (motion,) = {clip.scene.motions for clip in some}
        knows = motion in {("left",), ("zoom_in",), ("zoom_out",)}
        return 20.0 + timestep * np.mean(told) * knows

    settings = SamplingSettings.from_config(tiny.micro().config.sampling)
    found = demo_search.measure_opposites(judge, settings, 2, [600, 999])
    assert len(found) == 7
    assert found["left and right"] == {600: 300, 999: 499.5}
    assert found["zoom in and zoom out"] == {600: 600, 999: 999}
    assert found["clockwise and anticlockwise"] == {600: 0, 999: 0}
    lines = demo_search.opposites_table({"a": found}).splitlines()
    assert len(lines) == 9
    assert " ".join(lines[2].split()) == "| a | left and right | +300.00 | +499.50 |"


@pytest.mark.parametrize("entries, message", [
    ((), "--model is needed"),
    (("a",), "--model=a is not NAME=MODEL"),
    (("a=b", "a=c"), "two models 'a'"),
])  # fmt: skip
def test_models_are_named(entries, message):
    with pytest.raises(UserError, match=message):
        demo_search.models_of(entries)
    assert demo_search.models_of(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
