"""Which clips are validated on, and that nothing is dropped of their conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import release_files

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.training.inputs import ClipLosses
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.validation import open_validation

CLIPS = 5  # which no batch of 4 divides


def numbers(params, batch, keys, *, share=None, dropout=False):
    """The number of a clip, from 1, if nothing is dropped; and its quarter by its share."""
    del keys
    assert share is not None and not dropout
    told = jnp.where(batch.ids[:, 2] > 0, batch.keep_image, 0.0)  # "" is two tokens, and then zeros
    loss = params["scale"] * (batch.sample_index + 1).astype(jnp.float32) * told
    return ClipLosses(loss, (share * 4).astype(jnp.int32))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_the_mean_over_all_clips_with_their_conditions(parts):
    config = release_files.micro()
    config.data.update(validation="synthetic:test", workers=0)
    config.data.condition_dropout = 1 / 3  # as much as there can be
    config.train.update(batch_size=4 * parts, accumulation=parts, validation_clips=CLIPS)
    settings = settings_of(TrainSettings, "train", config.train)
    mesh = sharding.make_mesh(1)
    validation = open_validation(config, settings, numbers, mesh, jax.random.key(0))
    assert validation is not None
    found = validation({"scale": jnp.float32(2)})
    shares = (np.arange(CLIPS) + 0.5) / CLIPS
    by_quarter = [2 * np.flatnonzero((shares * 4).astype(int) == q).mean() + 2 for q in range(4)]
    wanted = {"validation_loss": 2 * (CLIPS + 1) / 2} | {
        f"validation/quarter_{q + 1}": mean for q, mean in enumerate(by_quarter)
    }
    assert found == pytest.approx(wanted)


def test_there_is_no_validation_without_clips():
    config = release_files.micro()
    settings = settings_of(TrainSettings, "train", config.train)
    mesh = sharding.make_mesh(1)
    assert open_validation(config, settings, numbers, mesh, jax.random.key(0)) is None
