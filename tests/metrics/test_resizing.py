"""Resizing against Pillow, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax.metrics.resizing import resize

SIZES = [
    ((256, 256), (224, 224)),
    ((320, 512), (224, 358)),
    ((96, 160), (224, 224)),
    ((576, 1024), (224, 224)),
    ((7, 300), (224, 224)),
    ((224, 100), (224, 50)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_every_pixel_is_pillows(before, after):
    images = np.random.default_rng(0).integers(0, 256, (2, *before, 3), np.uint8)
    ours = jax.jit(resize, static_argnums=(1, 2))(jnp.asarray(images), *after)
    assert ours.dtype == jnp.uint8
    for image, resized in zip(images, ours, strict=True):
        theirs = Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC)
        assert np.array_equal(resized, np.asarray(theirs))
