"""Training and validation losses beside what `losses_by_hand` makes of the same clips."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stand_ins
import tiny
from losses_by_hand import draws, losses_by_hand
from stand_ins import BASE_SCALE, FRAMES, LATENT, SIDE, TOKENS, quick_jit

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


def clips(cached=False) -> Any:
    draw = np.random.default_rng(3)
    fields: dict[str, Any] = {
        "sample_index": np.arange(FIRST, FIRST + CLIPS, dtype=np.uint32),
        "weight": np.ones(CLIPS, np.float32),
        "fs": draw.integers(1, 30, CLIPS).astype(np.float32),
        "frame": np.arange(CLIPS, dtype=np.int32)[::-1] % FRAMES,
        "keep_image": np.asarray(np.arange(CLIPS) != 2, np.float32),
        "ends": np.arange(CLIPS) % 3 == 0,
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
def objective(concat="frame", power=1.0):
    config = tiny.config("v")
    schedule = make_schedule(**config.diffusion.to_dict() | {"base_scale": BASE_SCALE})
    settings = settings_of(
        TrainSettings, "train", config.train, concat=concat, timestep_power=power
    )
    return make_objective(settings, stand_ins.stand_ins(), schedule, vae_frames=2)


@pytest.mark.parametrize(
    ("concat", "cached", "dropout", "power"),
    [
        ("frame", True, False, 1.0),
        ("ends", False, False, 2.0),
        ("either", False, True, 1.0),
        ("nothing", False, False, 1.0),
    ],
)
def test_the_loss_of_a_clip_is_the_papers(concat, cached, dropout, power):
    rng = jax.random.key(11)
    batch = clips(cached)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch.sample_index)
    found = quick_jit(objective(concat, power), static_argnames="dropout")(
        stand_ins.params(), jax.tree.map(jnp.asarray, batch), keys, dropout=dropout
    )
    # The share of the process is u^(1/p), whose density grows as the p-1-th power.
    share = np.asarray(draws(rng, batch.sample_index)["share"], np.float64) ** (1 / power)
    drawn = None if power == 1 else (share * 1000).astype(int)
    losses, timesteps = losses_by_hand(batch, rng, timestep=drawn, concat=concat, dropout=dropout)
    np.testing.assert_allclose(found.loss, losses, rtol=2e-4 if cached else 2e-5)
    np.testing.assert_array_equal(found.quarter, timesteps // 250)
    if concat == "either":
        others, _ = losses_by_hand(batch, rng, concat="frame", dropout=dropout)
        np.testing.assert_array_equal(~np.isclose(losses, others), batch.ends)


def test_a_step_trains_with_dropout_on_the_mean_of_its_readable_clips():
    rng = jax.random.key(7)
    batch = clips()._replace(weight=np.asarray(np.arange(CLIPS) != 5, np.float32))
    everything = stand_ins.params()
    trained = {name: everything.pop(name) for name in ("unet", "projector")}
    optimizer = optax.sgd(0.0)
    state = TrainState(jnp.int32(0), trained, everything, optimizer.init(trained), None)
    step = quick_jit(make_train_step(objective(), optimizer, accumulation=2, ema_decay=0.0))
    _, metrics = step(state, jax.tree.map(jnp.asarray, batch), rng)
    losses, timesteps = losses_by_hand(batch, rng, dropout=True)
    assert float(metrics.losses.mean) == pytest.approx(np.delete(losses, 5).mean(), rel=2e-5)
    quarters = np.bincount(timesteps // 250, losses * batch.weight, 4)
    np.testing.assert_allclose(metrics.losses.quarter_loss, quarters, rtol=2e-5)


def test_validation_is_without_dropout_at_timesteps_spread_over_all():
    rng = jax.random.key(9)
    batch = clips()._replace(sample_index=np.arange(CLIPS, dtype=np.uint32))
    found = quick_jit(functools.partial(validation_losses, objective(), num_clips=CLIPS))(
        stand_ins.params(), jax.tree.map(jnp.asarray, batch), rng
    )
    losses, _ = losses_by_hand(batch, rng, timestep=62 + 125 * np.arange(CLIPS))
    assert float(found.mean) == pytest.approx(np.mean(losses), rel=2e-5)


def test_every_draw_of_a_run_has_a_key_of_its_own():
    seed, uses = 3, ("parameter_key", "step_key", "validation_key")
    found = [jax.random.key_data(getattr(run_keys, use)(seed)) for use in uses]
    wanted = [jax.random.key_data(jax.random.fold_in(jax.random.key(seed), i)) for i in range(3)]
    np.testing.assert_array_equal(found, wanted)
    assert len({tuple(np.asarray(key).tolist()) for key in found}) == 3
