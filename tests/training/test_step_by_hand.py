"""The arithmetic of a training step in closed form, with a loss that has one.

The loss of clip i is half the squared distance of the parameters w from a point of its own, c_i; so
its gradient is w - c_i.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stand_ins import quick_jit

from dynamicrafter_jax.training.inputs import Batch, ClipLosses
from dynamicrafter_jax.training.state import TrainState, create_state
from dynamicrafter_jax.training.step import make_train_step, update_ema, weighted_losses

CLIPS = 8
POINTS = np.random.default_rng(0).standard_normal((CLIPS, 2)).astype(np.float32)
START = np.asarray([0.5, -2.0], np.float32)


def clips(broken=()) -> Batch:
    weight = np.ones(CLIPS, np.float32)
    weight[list(broken)] = 0
    return Batch(
        sample_index=jnp.arange(CLIPS, dtype=jnp.uint32),
        weight=jnp.asarray(weight),
        frame=jnp.zeros(CLIPS, jnp.int32),
        fs=jnp.asarray(POINTS[:, 0]),
        keep_image=jnp.asarray(POINTS[:, 1]),
    )


def distance(params, batch, keys, *, share=None, dropout=False):
    del keys, share, dropout
    points = jnp.stack([batch.fs, batch.keep_image], -1)
    gap = params["unet"]["w"][None] - points
    loss = jnp.square(gap).sum(-1) / 2
    return ClipLosses(loss, jnp.arange(len(points), dtype=jnp.int32) % 4)


def state(optimizer, step=0, ema=None) -> TrainState:
    params = {"unet": {"w": jnp.asarray(START)}}
    return TrainState(jnp.int32(step), params, {}, optimizer.init(params), ema)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("broken", [(), (1, 6, 7)])
def test_the_gradient_is_that_of_the_mean_over_readable_clips(accumulation, broken):
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    step = make_train_step(distance, optimizer, accumulation=accumulation, ema_decay=0.0)
    new, metrics = quick_jit(step)(state(optimizer), clips(broken), jax.random.key(0))
    points = np.delete(POINTS, broken, axis=0).astype(np.float64)
    gradient = START - points.mean(0)
    norm = np.linalg.norm(gradient)
    assert norm > 1
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)  # before it is clipped
    np.testing.assert_allclose(new.params["unet"]["w"], START - gradient * 0.1 / norm, rtol=1e-5)
    losses = ((START - points) ** 2).sum(1) / 2
    assert float(metrics.losses.mean) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(metrics.losses.weight) == len(points)
    assert int(new.step) == 1 and new.ema is None


def test_a_clip_that_could_not_be_read_has_no_loss_even_if_it_is_not_finite():
    losses = ClipLosses(jnp.asarray([1.5, jnp.nan, jnp.inf, 4.0]), jnp.asarray([0, 1, 2, 2]))
    found = weighted_losses(losses, jnp.asarray([1.0, 0.0, 0.0, 1.0]))
    assert float(found.loss) == 5.5 and float(found.weight) == 2 and float(found.mean) == 2.75
    np.testing.assert_array_equal(found.quarter_loss, [1.5, 0, 4, 0])
    np.testing.assert_array_equal(found.quarter_weight, [1, 0, 1, 0])


def test_a_run_begins_with_the_average_of_what_it_starts_from():
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaf = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=home)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=home)
    params: Any = {"unet": {"w": leaf}}
    optimizer = optax.sgd(1.0)
    abstract = TrainState(step, params, {"vae": {"w": leaf}}, optimizer.init(params), params)
    values = {"unet/w": START, "vae/w": 2 * START}
    state = create_state(abstract, values.__getitem__, optimizer)
    assert int(state.step) == 0 and state.ema is not None
    assert np.array_equal(state.params["unet"]["w"], START)
    assert np.array_equal(state.ema["unet"]["w"], START)
    assert np.array_equal(state.frozen["vae"]["w"], 2 * START)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_warms_up_and_then_decays_as_asked(decay):
    optimizer = optax.sgd(0.1)
    step = quick_jit(make_train_step(distance, optimizer, accumulation=1, ema_decay=decay))
    now = state(optimizer)
    now = now._replace(ema=now.params)
    wanted, batch = START.astype(np.float64), clips()
    for n in range(1, 15):
        now, _ = step(now, batch, jax.random.key(0))
        d = min(decay, (1 + n) / (10 + n))
        wanted = d * wanted + (1 - d) * np.asarray(now.params["unet"]["w"], np.float64)
        assert now.ema is not None
        np.testing.assert_allclose(now.ema["unet"]["w"], wanted, rtol=1e-5, err_msg=str(n))


def test_the_average_of_a_short_run_is_not_what_it_started_from():
    ema, params = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    for n in range(1, 11):
        ema = update_ema(ema, params, 0.999, jnp.int32(n))
    start = math.factorial(10) * math.factorial(11) / math.factorial(20)  # the product of decays
    assert start < 1e-4
    np.testing.assert_allclose(ema["w"], start, rtol=1e-4)


def test_an_average_of_any_type_is_kept_in_it():
    ema = update_ema(
        {"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.zeros(2, jnp.bfloat16)}, 0.5, jnp.int32(99)
    )
    assert ema["w"].dtype == jnp.bfloat16 and (ema["w"] == 0.5).all()


def test_a_run_goes_on_with_the_average_that_it_had():
    optimizer = optax.sgd(0.1)
    step = quick_jit(make_train_step(distance, optimizer, accumulation=1, ema_decay=0.999))
    now = state(optimizer)
    now, batch = now._replace(ema=now.params), clips()
    for _ in range(3):
        now, _ = step(now, batch, jax.random.key(0))
    saved = jax.tree.map(np.asarray, now)
    again = TrainState(jnp.int32(3), saved.params, {}, saved.opt_state, saved.ema)
    for _ in range(3):
        now, _ = step(now, batch, jax.random.key(0))
        again, _ = step(again, batch, jax.random.key(0))
    assert now.ema is not None and again.ema is not None
    np.testing.assert_array_equal(now.ema["unet"]["w"], again.ema["unet"]["w"])
