"""Clips of which some frames are read are told what the whole clips are told of these frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_clips import clips

from dynamicrafter_jax.conditioning import frame_context
from dynamicrafter_jax.training import inputs

PLACES = np.array([[0, 2], [1, 2], [0, 2], [0, 1]], np.int32)
FRAMES = np.array([0, 1, 1, 0], np.int32)  # the conditioning frames, among those that are read
ENDS = np.array([True, False, True, False])


def whole_and_some():
    batch = clips(len(PLACES))
    whole = batch._replace(frame=np.take_along_axis(PLACES, FRAMES[:, None], 1)[:, 0], ends=ENDS)
    video = np.stack([video[places] for video, places in zip(batch.video, PLACES, strict=True)])
    some = whole._replace(frame=FRAMES, places=PLACES, video=video)
    return jax.tree.map(jnp.asarray, whole), jax.tree.map(jnp.asarray, some)


@functools.partial(jax.jit, static_argnums=3)
def condition(params, batch, latents, concat):
    return inputs.clip_condition(tiny.micro().models, params, batch, latents, concat)


@pytest.mark.parametrize("concat", ["frame", "ends", "either", "nothing"])
def test_conditions_are_those_of_the_frames_read(concat):
    model = tiny.micro()
    z = np.random.default_rng(3).standard_normal((len(PLACES), 3, 8, 12, 4)).astype(np.float32)
    rows = np.arange(len(PLACES))[:, None]
    told = []
    for batch, latents in zip(whole_and_some(), (z, z[rows, PLACES]), strict=True):
        told.append(condition(model.params, batch, jnp.asarray(latents), concat))
    whole, some = jax.tree.map(np.asarray, told)
    np.testing.assert_array_equal(some.text, whole.text)
    np.testing.assert_array_equal(some.fs, whole.fs)
    read, of_all = (
        np.asarray(frame_context(model.models, jax.tree.map(jnp.asarray, one), count))
        for one, count in ((some, 2), (whole, 3))
    )
    np.testing.assert_allclose(read, of_all[rows, PLACES], rtol=1e-6)
    assert np.abs(np.diff(read, axis=1)).max() > 1e-3  # frames have tokens of their own
    # A clip is given by both its ends only where these are read.
    given = ENDS if concat in ("ends", "either") else np.full(len(PLACES), concat == "frame")
    given |= concat == "either"
    expected = whole.concat[rows, PLACES]
    np.testing.assert_array_equal(some.concat[given], expected[given])
