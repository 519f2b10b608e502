import math

import numpy as np
import pytest
import tiny

from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.optimizer import learning_rate
from dynamicrafter_jax.training.settings import TrainSettings


def settings(**overrides):
    return settings_of(TrainSettings, "train", tiny.config("v").train, **overrides)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine():
    rate = learning_rate(settings(learning_rate=2.0, warmup_steps=3, steps=103, decay="cosine"))
    rates = [float(np.asarray(rate(step))) for step in range(104)]
    assert np.allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    wanted = [1 + math.cos(math.pi * step / 100) for step in range(101)]
    assert np.allclose(rates[3:], wanted, atol=1e-5)


def test_a_constant_rate_is_constant():
    rate = learning_rate(settings(learning_rate=1e-5, steps=10))
    assert {float(np.asarray(rate(step))) for step in (0, 5, 1000)} == {1e-5}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "train.steps is 0: it must be above 0"),
        ("steps", 1.5, "train.steps is 1.5: a whole number is needed"),
        ("accumulation", 3, "batch_size is 64, which train.accumulation = 3 does not divide"),
        ("ema_decay", 1.0, "train.ema_decay is 1.0: 0 or more, and below 1"),
        ("remat", "dots", "train.remat is 'dots': choose of none, products, blocks"),
        ("concat", "image", "choose of frame, ends, nothing"),
        ("decay", "linear", "choose of constant, cosine"),
        ("trainable", "some", "train.trainable is 'some': choose of projector_and_image"),
        ("trainable", ("unet/(",), "is no expression"),
        ("keep_every", 0, "train.keep_every is 0: at least 1, or None for none"),
        ("sample_images", ("a.png",), "1 entries, but train.sample_prompts 0"),
        ("seed", 2**32, "choose one below 2^32"),
        ("speed", 1, "unknown train setting speed"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_with_its_name(field, value, message):
    with pytest.raises(UserError) as error:
        settings(**{field: value})
    assert message in str(error.value)
