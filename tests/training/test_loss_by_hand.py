"""A training loss written out in NumPy, from pixels and token ids to its mean.

Networks are stand-ins of a few lines. JAX gives the draws alone, by keys that are derived here from
a seed and the sample's number; every other rule is the paper's and the release's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stand_ins
import tiny
from stand_ins import FRAMES, LATENT, SCALE, SIDE, TOKENS

from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.training import keys as run_keys
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import TrainState
from dynamicrafter_jax.training.step import make_train_step
from dynamicrafter_jax.training.validation import validation_losses

CLIPS, FIRST = 8, 40  # clips of a batch, and the number of the first among all samples
BASE_SCALE = 0.6
ENDS_SHARE = 0.25


def clips(cached=False) -> Any:
    draw = np.random.default_rng(3)
    fields: dict[str, Any] = {
        "sample_index": np.arange(FIRST, FIRST + CLIPS, dtype=np.uint32),
        "weight": np.ones(CLIPS, np.float32),
        "fs": draw.integers(1, 30, CLIPS).astype(np.float32),
        "frame": np.arange(CLIPS, dtype=np.int32)[::-1] % FRAMES,
        "keep_image": np.asarray(np.arange(CLIPS) != 2, np.float32),
    }
    if cached:
        moments = draw.standard_normal((CLIPS, *LATENT[:3], 8))
        moments[0, ..., 4:] *= 15  # far beyond what a posterior is clipped to
        fields |= {
            "moments": moments.astype(np.float16),
            "text": draw.standard_normal((CLIPS, TOKENS, stand_ins.WIDTH)).astype(np.float32),
            "vision": draw.standard_normal((CLIPS, SIDE * SIDE, 3)).astype(np.float32),
        }
    else:
        fields |= {
            "video": draw.integers(0, 256, (CLIPS, FRAMES, SIDE, SIDE, 3)).astype(np.uint8),
            "ids": draw.integers(0, 50, (CLIPS, TOKENS)).astype(np.int32),
        }
    return Batch(**fields)


@functools.cache
def objective(concat="frame"):
    config = tiny.config("v")
    schedule = make_schedule(**config.diffusion.to_dict() | {"base_scale": BASE_SCALE})
    settings = settings_of(TrainSettings, "train", config.train, concat=concat)
    return make_objective(settings, stand_ins.stand_ins(), schedule, vae_frames=2)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def draws(rng, index):
    """All that is drawn for the sample of a number."""
    key = jax.random.fold_in(rng, index)
    streams = [jax.random.fold_in(key, stream) for stream in range(5)]
    return {
        "posterior": jax.random.normal(streams[0], LATENT),
        "noise": jax.random.normal(streams[1], LATENT),
        "timestep": jax.random.randint(streams[2], (), 0, 1000),
        "kept": stand_ins.kept(streams[3][None])[0],
        "ends": jax.random.bernoulli(streams[4], ENDS_SHARE),
    }


def loss_by_hand(batch, i, drawn, *, concat="frame", dropout=False):
    """The loss of clip i."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), stand_ins.params())
    drawn = {name: np.asarray(draw[i], np.float64) for name, draw in drawn.items()}

    # Latents: a sample of the posterior of every frame, scaled.
    frame = int(batch.frame[i])
    if batch.moments is None:
        video = batch.video[i] / 127.5 - 1
        moments = stand_ins.moments(params["vae"], video)
        text = params["text_encoder"]["table"][batch.ids[i]]
        # A dropped image is grey.
        image = stand_ins.image_context(params, video[frame] * batch.keep_image[i])
    else:
        moments = batch.moments[i].astype(np.float64)
        text = batch.text[i].astype(np.float64)
        image = stand_ins.context(params["projector"], batch.vision[i].astype(np.float64)[None])[0]
    mean, logvar = moments[..., :4], np.clip(moments[..., 4:], -30, 20)
    z = SCALE * (mean + np.exp(logvar / 2) * drawn["posterior"])

    # What is concatenated: the latent of the conditioning frame for all, or of both ends.
    given = np.zeros(LATENT)
    if concat == "either":
        concat = "ends" if drawn["ends"] else "frame"
    if concat == "frame":
        given[:] = z[frame]
    elif concat == "ends":
        given[0], given[-1] = z[0], z[-1]

    # q(x_t | x_0) of the rescaled latents, and the velocity.
    root, scale = stand_ins.levels(BASE_SCALE)
    timestep, noise = int(drawn["timestep"]), drawn["noise"]
    signal, noise_level = root[timestep], (1 - root[timestep] ** 2) ** 0.5
    x0 = scale[timestep] * z
    x, velocity = signal * x0 + noise_level * noise, signal * noise - noise_level * x0

    found = stand_ins.unet(
        params["unet"],
        np.concatenate([x, given], -1)[None],
        np.array([timestep]),
        text[None],
        image[None],
        np.asarray(batch.fs[i], np.float64)[None],
        None,
    )[0]
    if dropout:
        found = found * drawn["kept"]
    return np.mean((found - velocity) ** 2)


def by_hand(batch, rng, timestep=None, **options):
    """The losses of all clips, and their timesteps."""
    drawn = draws(rng, batch.sample_index)
    if timestep is not None:
        drawn["timestep"] = timestep
    losses = np.array([loss_by_hand(batch, i, drawn, **options) for i in range(CLIPS)])
    return losses, np.asarray(drawn["timestep"])


@pytest.mark.parametrize(
    ("concat", "cached", "dropout"),
    [
        ("frame", True, False),
        ("ends", False, False),
        ("either", False, True),
        ("nothing", False, False),
    ],
)
def test_the_loss_of_a_clip_is_the_papers(concat, cached, dropout):
    rng = jax.random.key(11)
    batch = clips(cached)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch.sample_index)
    found = jax.jit(objective(concat), static_argnames="dropout")(
        stand_ins.params(), jax.tree.map(jnp.asarray, batch), keys, dropout=dropout
    )
    losses, timesteps = by_hand(batch, rng, concat=concat, dropout=dropout)
    np.testing.assert_allclose(found.loss, losses, rtol=2e-4 if cached else 2e-5)
    np.testing.assert_array_equal(found.quarter, timesteps // 250)
    if concat == "either":
        others, _ = by_hand(batch, rng, concat="frame", dropout=dropout)
        assert 0 < np.isclose(losses, others).sum() < CLIPS


def test_a_step_trains_with_dropout_on_the_mean_of_its_readable_clips():
    rng = jax.random.key(7)
    batch = clips()._replace(weight=np.asarray(np.arange(CLIPS) != 5, np.float32))
    everything = stand_ins.params()
    trained = {name: everything.pop(name) for name in ("unet", "projector")}
    optimizer = optax.sgd(0.0)
    state = TrainState(jnp.int32(0), trained, everything, optimizer.init(trained), None)
    step = jax.jit(make_train_step(objective(), optimizer, accumulation=2, ema_decay=0.0))
    _, metrics = step(state, jax.tree.map(jnp.asarray, batch), rng)
    losses, timesteps = by_hand(batch, rng, dropout=True)
    assert float(metrics.losses.mean) == pytest.approx(np.delete(losses, 5).mean(), rel=2e-5)
    quarters = np.bincount(timesteps // 250, losses * batch.weight, 4)
    np.testing.assert_allclose(metrics.losses.quarter_loss, quarters, rtol=2e-5)


def test_validation_is_without_dropout_at_timesteps_spread_over_all():
    rng = jax.random.key(9)
    batch = clips()._replace(sample_index=np.arange(CLIPS, dtype=np.uint32))
    found = jax.jit(functools.partial(validation_losses, objective(), num_clips=CLIPS))(
        stand_ins.params(), jax.tree.map(jnp.asarray, batch), rng
    )
    losses, _ = by_hand(batch, rng, timestep=62 + 125 * np.arange(CLIPS))
    assert float(found.mean) == pytest.approx(np.mean(losses), rel=2e-5)


def test_every_draw_of_a_run_has_a_key_of_its_own():
    seed, uses = 3, ("parameter_key", "step_key", "validation_key")
    found = [jax.random.key_data(getattr(run_keys, use)(seed)) for use in uses]
    wanted = [jax.random.key_data(jax.random.fold_in(jax.random.key(seed), i)) for i in range(3)]
    np.testing.assert_array_equal(found, wanted)
    assert len({tuple(np.asarray(key).tolist()) for key in found}) == 3
