"""Scaling and turning against NumPy, and the VAE's loss with toys whose error is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_clips import clips
from scipy import stats

from dynamicrafter_jax.models.autoencoder import Autoencoder, Posterior
from dynamicrafter_jax.training import objectives
from dynamicrafter_jax.training.equivariance import Move, draw_move, inside, moved
from dynamicrafter_jax.training.keys import Stream


def move(height: float, width: float, turns: int = 0) -> Move:
    return Move(jnp.array([height, width], jnp.float32), jnp.int32(turns))


def frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("turns", range(4))
def test_turns_are_those_of_numpy(turns):
    square, wide = frames(2, 6, 6, 3), frames(2, 4, 6, 3)
    found = moved(jnp.asarray(square), move(1, 1, turns))
    np.testing.assert_array_equal(found, np.rot90(square, turns, (1, 2)))
    found = moved(jnp.asarray(wide), move(1, 1, turns))
    np.testing.assert_array_equal(found, np.rot90(wide, 2 * (turns % 2), (1, 2)))


def test_half_the_width_is_the_mean_of_four_neighbours():
    """By the triangle that is twice as wide, and with mirror images beside."""
    row = frames(8)
    found = moved(jnp.asarray(row.reshape(1, 1, 8, 1)), move(1, 0.5))[0, 0, :, 0]
    mirrored = np.pad(row, 5, "symmetric").astype(np.float64)
    expected = [mirrored[2 * i : 2 * i + 4] @ [1, 3, 3, 1] / 8 for i in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    seen = np.asarray(inside(move(1, 0.5), 1, 8))
    np.testing.assert_array_equal(seen, [[False, False, True, True, True, True, False, False]])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.9, 0.3), (0.25, 0.6)])
def test_a_slope_stays_a_slope(scale):
    """What is scaled down by s rises 1/s as fast, about the middle; mirrored edges apart."""
    y, x = np.indices((32, 32)) - 15.5
    found = moved(jnp.asarray((y + 2 * x).reshape(1, 32, 32, 1), jnp.float32), move(*scale))
    expected = (y / scale[0] + 2 * x / scale[1])[None, :, :, None]
    reach = [scale[i] * 16 - 1 for i in (0, 1)]  # the triangle sees no mirror image there
    inner = (np.abs(y) <= reach[0]) & (np.abs(x) <= reach[1])
    assert inner.any() and np.asarray(inside(move(*scale), 32, 32))[inner].all()
    # The triangle, seen at whole pixels, is off by up to a fortieth of one.
    slope = 1 / scale[0] + 2 / scale[1]
    np.testing.assert_allclose(found[0, inner], expected[0, inner], atol=slope / 40)


def test_moves_are_drawn_evenly():
    keys = jax.random.split(jax.random.key(1), 4000)
    moves = jax.tree.map(np.asarray, jax.vmap(draw_move, (0, None))(keys, 0.6))
    none = (moves.scale == 1).all(1)
    assert stats.binomtest(int(none.sum()), 4000, 0.4).pvalue > 1e-4
    assert (moves.turns[none] == 0).all()
    for side in moves.scale[~none].T:
        assert stats.kstest((side - 0.25) / 0.75, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(moves.scale[~none].T)[0, 1]) < 0.1
    assert stats.chisquare(np.bincount(moves.turns[~none], minlength=4)).pvalue > 1e-4


class Toy(Autoencoder):
    """A VAE whose latents are the pixels times 2, decoded exactly but for an error in places."""

    error: Any = None

    def encode(self, image: Any) -> Posterior:
        return Posterior(2 * image, jnp.full_like(image, -30.0))

    def decode(self, z: Any) -> Any:
        return z / 2 + jnp.asarray(self.error, jnp.float32)[None, ..., None]


def losses(error: np.ndarray, share: float, *, training: bool = True) -> np.ndarray:
    batch = jax.tree.map(jnp.asarray, clips(4))
    keys = jax.random.split(jax.random.key(5), 4)
    models = tiny.micro().models._replace(vae=Toy(error=error))
    reconstruct = functools.partial(objectives.reconstruct, models, 64, 0.0, share, {"vae": {}})
    found = jax.jit(functools.partial(reconstruct, dropout=training))(batch, keys)
    return np.asarray(found.loss)


def test_latents_that_go_with_the_picture_have_no_error():
    assert losses(np.zeros((16, 24)), 1.0).max() < 1e-8


def test_only_what_is_of_the_picture_counts():
    """An error at the rim counts where a picture is not scaled, and not where it is small.

    However small it is, its own error counts in full.
    """
    error = np.ones((16, 24))
    error[1:-1, 1:-1] = 0.5
    squares = error**2
    np.testing.assert_allclose(losses(error, 0.0), squares.mean(), rtol=1e-5)
    np.testing.assert_allclose(losses(error, 1.0, training=False), squares.mean(), rtol=1e-5)
    keys = jax.random.split(jax.random.key(5), 4)
    expected = []
    for key in keys:
        scale = np.asarray(draw_move(jax.random.fold_in(key, int(Stream.MOVE)), 1.0).scale)
        rows, columns = (
            np.abs(np.arange(n) + 0.5 - n / 2) < s * n / 2
            for n, s in zip((16, 24), scale, strict=True)
        )
        expected.append(squares[rows][:, columns].mean())
    assert min(expected) == 0.25
    np.testing.assert_allclose(losses(error, 1.0), expected, rtol=1e-5, atol=1e-8)
