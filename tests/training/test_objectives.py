"""What runs learn from, by formulas written out in NumPy, the networks called one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_clips import clips

from dynamicrafter_jax.config import load_config, settings_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.training import inputs, objectives
from dynamicrafter_jax.training.settings import TrainSettings

CLIPS = 5


def settings(**overrides) -> TrainSettings:
    return settings_of(TrainSettings, "train", load_config("i2v_512").train, **overrides)


@functools.cache
def objective(**overrides):
    model = tiny.micro()
    schedule = make_schedule(**model.config.diffusion.to_dict())
    made = objectives.make_objective(settings(**overrides), model.models, schedule, vae_frames=4)
    return jax.jit(made, static_argnames="dropout")


def keys(count=CLIPS):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))


def batch(count=CLIPS, broken=()):
    return jax.tree.map(jnp.asarray, clips(count, broken))


def test_reconstruction_is_squared_error_and_divergence():
    model, rows = tiny.micro(), batch(2)
    without, with_divergence = (
        objective(objective="reconstruct", kl_weight=weight)(model.params, rows, keys(2)).loss
        for weight in (0.0, 0.5)
    )

    video = np.asarray(rows.video, np.float64) / 127.5 - 1
    errors, divergences = [], []
    for i, key in enumerate(keys(2)):
        frames = jnp.asarray(video[i], jnp.float32)
        mean, logvar = run("vae", model.params, frames, "encode")
        noise = jax.random.normal(jax.random.fold_in(key, 0), mean.shape)
        z = mean + jnp.exp(logvar / 2) * noise
        decoded = run("vae", model.params, z, "decode")
        errors.append(np.mean((np.asarray(decoded, np.float64) - video[i]) ** 2))
        variance = np.exp(np.asarray(logvar, np.float64))
        mean = np.asarray(mean, np.float64)
        divergences.append(np.mean(variance + mean**2 - 1 - np.log(variance)) / 2)
    np.testing.assert_allclose(without, errors, rtol=1e-5)
    np.testing.assert_allclose(with_divergence - without, np.array(divergences) / 2, rtol=1e-4)


@jax.jit
def context(params, frame):
    """The context tokens of a frame."""
    models, pixels = tiny.micro().models, inputs.pixels(frame)[None]
    tokens = objectives.conditioning.image_tokens(models, params, pixels)
    return models.apply("projector", params, tokens)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(network, params, given, method=None):
    return tiny.micro().models.apply(network, params, given, method=method)


def embeddings(rows):
    """What `align` compares, clip by clip."""
    model, found = tiny.micro(), []
    for video, ids in zip(rows.video, rows.ids, strict=True):
        first, last = (context(model.params, frame) for frame in (video[0], video[-1]))
        states = run("text_encoder", model.params, ids[None])[0]
        found.append((first[0].mean(0) + last[-1].mean(0), states[int(np.argmax(ids))]))
    return (np.stack(side).astype(np.float64) for side in zip(*found, strict=True))


def test_alignment_is_cross_entropy_both_ways():
    rows = batch()
    align = objective(objective="align", temperature=0.5, recall_weight=0.0)
    loss = align(tiny.micro().params, rows, keys()).loss

    clip, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in embeddings(rows))
    odds = np.exp(clip @ text.T / 0.5)
    found = np.diagonal(odds) / np.sqrt(odds.sum(0) * odds.sum(1))
    np.testing.assert_allclose(loss, -np.log(found), rtol=1e-4)


def test_alignment_asks_captions_to_recall_their_words():
    model, rows = tiny.micro(), batch()
    align = functools.partial(objective, objective="align", temperature=0.5)
    without, with_recall = (
        align(recall_weight=weight)(model.params, rows, keys()).loss for weight in (0.0, 2.0)
    )

    embedding = np.asarray(model.params["text_encoder"]["token_embedding"], np.float64)
    expected = []
    for ids in np.asarray(rows.ids):
        words = ids[1 : int(np.argmax(ids))]  # the end has the highest id
        states = run("text_encoder", model.params, jnp.asarray(ids)[None])[0]
        odds = np.exp(embedding @ np.asarray(states, np.float64).mean(0) / 0.5)
        expected.append(-np.log(odds[words] / odds.sum()).mean() if len(words) else 0.0)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose((with_recall - without) / 2, expected, rtol=1e-4)


def test_an_unreadable_clip_is_no_choice_in_an_alignment():
    params = tiny.micro().params
    align = objective(objective="align", temperature=0.5)
    with_broken = align(params, batch(CLIPS, broken=[CLIPS - 1]), keys()).loss
    four = jax.tree.map(lambda rows: rows[: CLIPS - 1], batch())
    alone = objective(objective="align", temperature=0.5)(params, four, keys(CLIPS - 1)).loss
    np.testing.assert_allclose(with_broken[: CLIPS - 1], alone, rtol=1e-5)


@pytest.mark.parametrize("name", ["reconstruct", "align"])
def test_only_denoising_is_told_by_quarter(name):
    found = objective(objective=name)(tiny.micro().params, batch(2), keys(2))
    assert (np.asarray(found.quarter) == -1).all()


@pytest.mark.parametrize("name", ["reconstruct", "align"])
def test_a_cache_has_not_what_towers_and_vae_learn_from(name):
    rows = batch(2)._replace(video=None)
    with pytest.raises(ValueError, match=f"'{name}' needs videos"):
        objective(objective=name)(tiny.micro().params, rows, keys(2))


def test_either_gives_some_clips_both_ends_and_the_others_a_frame():
    count, params = 24, tiny.micro().params
    share = jnp.full(count, 0.6)
    one = clips(3)
    rows = jax.tree.map(lambda leaf: jnp.asarray(np.concatenate([leaf] * (count // 3))), one)
    either, frame, ends = (
        np.asarray(objective(concat=concat)(params, rows, keys(count), share=share).loss)
        for concat in ("either", "frame", "ends")
    )
    as_ends, as_frame = np.isclose(either, ends, rtol=1e-5), np.isclose(either, frame, rtol=1e-5)
    assert (as_ends | as_frame).all()
    assert not (as_ends & as_frame).any()
    np.testing.assert_array_equal(as_ends, rows.ends)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_timesteps_are_drawn_with_the_density_of_a_power(power):
    draw = functools.partial(objectives._draw_timestep, timesteps=1000, power=power)
    drawn = np.sort(jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)))
    assert drawn[0] >= 0 and drawn[-1] <= 999
    distance = np.abs((drawn + 0.5) / 1000 - ((np.arange(20_000) + 0.5) / 20_000) ** (1 / power))
    assert (
        distance.max() < 0.02
    )  # Kolmogorov and Smirnov's, far beyond chance if the law is another
