import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.conditioning import concat_latents, frame_queries


def test_every_frame_of_a_full_clip_reads_its_own_queries():
    assert np.array_equal(frame_queries(16, 16), np.arange(16))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 15, 17, 32, 64])
def test_other_frame_counts_read_the_nearest_group_in_proportion(num_frames):
    chosen = frame_queries(num_frames, 16)
    assert chosen.shape == (num_frames,) and chosen[0] == 0
    if num_frames > 1:
        exact = np.linspace(0, 15, num_frames)
        assert chosen[-1] == 15
        assert np.all(np.abs(chosen - exact) <= 0.5 + 1e-9)
        assert np.all(np.diff(chosen) >= 0)


def test_halves_go_upwards():
    assert np.array_equal(frame_queries(3, 16), [0, 8, 15])


def test_one_image_conditions_every_frame():
    first = jnp.arange(2 * 3 * 4 * 4, dtype=jnp.float32).reshape(2, 3, 4, 4)
    concat = np.asarray(concat_latents(first, 5))
    assert concat.shape == (2, 5, 3, 4, 4)
    assert all(np.array_equal(concat[:, t], first) for t in range(5))


def test_two_images_condition_the_ends_and_leave_the_rest_free():
    first, last = jnp.full((1, 2, 2, 4), 3.0), jnp.full((1, 2, 2, 4), 5.0)
    concat = np.asarray(concat_latents(first, 4, last))
    assert np.all(concat[:, 0] == 3) and np.all(concat[:, 3] == 5)
    assert np.all(concat[:, 1:3] == 0)
