"""Where draws come from: keys that are derived here once more, and no two alike."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.sampling.noise import KeyedNoise, replay

FRAME, CLIP = (1, 2, 3), (1, 1, 2, 3)
SEED, INDICES = 6, (0, 5)


def drawn() -> dict[str, np.ndarray]:
    """Every kind of draw, for two samples."""
    noise = KeyedNoise.from_seed(SEED, INDICES)
    found = {
        "first": noise.posterior(False, FRAME),
        "last": noise.posterior(True, FRAME),
        "initial": noise.initial(CLIP),
        **{f"step {i}": noise.step(jnp.int32(i), CLIP) for i in range(3)},
    }
    return {name: np.asarray(draw).reshape(len(INDICES), -1) for name, draw in found.items()}


def test_draws_follow_from_seed_sample_stream_and_step():
    streams = {"first": (0,), "last": (1,), "initial": (2,)} | {
        f"step {i}": (3, i) for i in range(3)
    }
    found = drawn()
    assert set(found) == set(streams)
    for name, folds in streams.items():
        for row, index in enumerate(INDICES):
            key = jax.random.key(SEED)
            for number in (index, *folds):
                key = jax.random.fold_in(key, number)
            wanted = jax.random.normal(key, (math.prod(CLIP),))
            np.testing.assert_array_equal(found[name][row], wanted, name)


def test_no_two_draws_are_alike():
    draws = [row for draw in drawn().values() for row in draw]
    assert len(draws) == 12
    for one, other in itertools.combinations(draws, 2):
        assert not np.isclose(one, other).any()


@pytest.mark.parametrize("last", [False, True])
def test_a_replay_gives_each_draw_where_the_release_takes_it(last):
    draw = np.random.default_rng(0).standard_normal
    batch, steps, shape = 2, 3, (4, 1, 2, 5)
    arrays = {
        "posterior_noise": draw((batch * 4, 1, 2, 5)),
        "x_T": draw((batch, *shape)),
        "step_noise": draw((steps, batch, *shape)),
    }
    noise = replay(arrays, batch, steps, shape)
    for clip in range(batch):
        frame = 4 * clip + (3 if last else 0)
        posterior = noise.posterior(last, shape[1:])[clip]
        np.testing.assert_allclose(posterior, arrays["posterior_noise"][frame], rtol=1e-6)
        np.testing.assert_allclose(noise.initial(shape)[clip], arrays["x_T"][clip], rtol=1e-6)
        for step in range(steps):
            ours = noise.step(jnp.int32(step), shape)[clip]
            np.testing.assert_allclose(ours, arrays["step_noise"][step, clip], rtol=1e-6)
