import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.conditioning import (
    Conditioning,
    concat_latents,
    conditioned_unet,
    frame_context,
    nearest_queries,
    project_tokens,
)
from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.errors import UserError


def test_every_frame_of_a_full_clip_reads_its_own_queries():
    assert np.array_equal(nearest_queries(16, 16), np.arange(16))


@pytest.mark.parametrize("rule", ["all", "nearest"])
def test_what_frames_read_of_the_projector(rule):
    model = tiny.micro()  # three frames, 16 queries each
    models = model.models._replace(projector=model.models.projector.clone(other_lengths=rule))
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 16)), jnp.float32)
    context = jax.jit(functools.partial(project_tokens, models))(model.params, tokens)

    def read(num_frames: int, queries: jax.Array | None = None) -> np.ndarray:
        """What the frames of a pass read."""
        concat = jnp.zeros((2, num_frames, 1, 1, 4))
        condition = Conditioning(jnp.zeros((2, 1, 16)), context, concat, jnp.zeros(2), queries)
        return np.asarray(frame_context(models, condition, num_frames))

    own = read(3)
    assert own.shape == (2, 3, 16, 16) and not np.allclose(own[:, 0], own[:, 1])
    if rule == "all":
        assert np.array_equal(read(2), own.reshape(2, 48, 16))
        assert np.array_equal(read(1), read(5))
    else:
        assert np.array_equal(read(2), own[:, [0, 2]])
        assert np.array_equal(read(5), own[:, [0, 1, 1, 2, 2]])
    chosen = jnp.asarray([[2, 0], [1, 1]])
    assert np.array_equal(read(2, chosen), [own[0, [2, 0]], own[1, [1, 1]]])


def test_a_window_of_a_long_clip_is_a_clip_of_its_own():
    """Windows over a clip of 7 frames, for a projector that has queries for 3."""
    model = tiny.micro()
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.standard_normal((2, 5, 16)), jnp.float32)
    project = jax.jit(functools.partial(project_tokens, model.models))
    concat = jnp.asarray(random.standard_normal((2, 7, 2, 3, 4)), jnp.float32)
    context = project(model.params, tokens)
    whole = Conditioning(jnp.zeros((2, 1, 16)), context, concat, jnp.ones(2))
    window = whole.of_frames(slice(2, 5))
    assert np.array_equal(window.concat, concat[:, 2:5])
    read = frame_context(model.models, window, 3)
    assert np.array_equal(read, context), "each frame has queries of its own again"
    # Or frames keep what is nearest to their place in the whole clip.
    places = jnp.broadcast_to(nearest_queries(7, 3), (2, 7))
    kept = whole._replace(queries=places).of_frames(jnp.asarray([0, 3, 6]))
    assert kept.queries is not None and np.array_equal(kept.queries, [[0, 1, 2], [0, 1, 2]])
    unet = jax.jit(conditioned_unet(model.models, model.params))
    x = jnp.asarray(random.standard_normal(window.concat.shape), jnp.float32)
    predicted = unet(x, jnp.asarray([10, 500]), window)
    same = unet(x, jnp.asarray([10, 500]), kept._replace(concat=window.concat))
    assert predicted.shape == x.shape and np.allclose(predicted, same, atol=1e-6)


def test_an_unknown_rule_is_refused():
    config = tiny.micro().config.copy_and_resolve_references()
    config.projector.other_lengths = "some"
    with pytest.raises(UserError, match="other_lengths is 'some': choose from all, nearest"):
        networks_of(config)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 15, 17, 32, 64])
def test_other_frame_counts_read_the_nearest_group_in_proportion(num_frames):
    chosen = nearest_queries(num_frames, 16)
    assert chosen.shape == (num_frames,) and chosen[0] == 0
    if num_frames > 1:
        exact = np.linspace(0, 15, num_frames)
        assert chosen[-1] == 15
        assert np.all(np.abs(chosen - exact) <= 0.5 + 1e-9)
        assert np.all(np.diff(chosen) >= 0)


def test_halves_go_upwards():
    assert np.array_equal(nearest_queries(3, 16), [0, 8, 15])


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
