import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from optax.contrib import scale_by_muon

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.training.muon import orthogonalize
from dynamicrafter_jax.training.optimizer import learning_rate, make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state


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


KERNELS = {  # of each kind: its path in the micro model, and how many of its axes are inputs
    "unet/input_1/res/conv1/kernel": 3,
    "unet/input_1/spatial/attn2/image_key/kernel": 1,
    "unet/input_1/spatial/ff/in/kernel": 1,
    "unet/input_1/temporal/attn1/out/kernel": 2,
    "text_encoder/block_0/qkv/kernel": 1,
    "image_encoder/block_0/out/kernel": 2,
    "projector/attn_0/key_value/kernel": 1,
    "vae/encoder/mid/attn/query/kernel": 1,
}


def muon_step():
    """The first step of Muon at a rate of 1, and the gradient that it is made of, by path."""
    params = init_params(abstract_models(tiny.micro().models), jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    gradient = jax.tree.map(lambda leaf: 1e-6 * draw(leaf.shape).astype(np.float32), params)
    chosen = settings(optimizer="muon", learning_rate=1.0, weight_decay=0.0)
    optimizer = make_optimizer(chosen)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)

    def flat(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in leaves
        }

    return flat(updates), flat(gradient)


def test_muon_makes_kernels_orthogonal_and_takes_adam_for_the_rest():
    updates, gradients = muon_step()
    for path, inputs in KERNELS.items():
        update = updates[path]
        matrix = update.reshape(math.prod(update.shape[:inputs]), -1)
        values = np.linalg.svd(matrix, compute_uv=False)
        # Newton and Schulz's five iterations leave singular values between about 0.7 and 1.2.
        assert values.max() < 2.2 * values.min(), path
        assert 0.1 < np.sqrt(np.mean(update**2)) < 0.3, path
        assert np.vdot(update, gradients[path]) < 0, path
    for path in ("unet/input_1/res/norm1/scale", "text_encoder/token_embedding"):
        # Adam's first step goes against the gradient, each entry about equally far.
        assert (np.sign(updates[path]) == -np.sign(gradients[path])).all(), path
        assert np.median(np.abs(updates[path])) == pytest.approx(1.4, abs=0.2), path


def test_kernels_made_orthogonal_together_are_as_optax_makes_each():
    draw = np.random.default_rng(0).standard_normal
    shapes = {
        "a": (3, 3, 8, 16), "b": (3, 3, 16, 8), "c": (4, 4, 72), "out": (4, 4, 72),
        "query": (72, 4, 4), "e": (16, 16), "f": (16, 16),
    }  # fmt: skip
    kernels = {
        name: {"kernel": jnp.asarray(draw(shape), jnp.float32)} for name, shape in shapes.items()
    }
    reference = scale_by_muon(beta=0.0, nesterov=False)
    with jax.numpy_dtype_promotion("standard"):
        made = orthogonalize(kernels)
        for name, shape in shapes.items():
            matrix = kernels[name]["kernel"].reshape(-1, 16 if name == "query" else shape[-1])
            alone, _ = reference.update(matrix, reference.init(matrix))
            wanted = 0.2 * math.sqrt(max(matrix.shape)) * np.asarray(alone)
            assert np.allclose(made[name]["kernel"].reshape(matrix.shape), wanted, atol=1e-5), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_do(name):
    chosen = settings(optimizer=name)
    mesh = sharding.make_mesh(2, fsdp=4)
    optimizer = make_optimizer(chosen)
    boxed = abstract_models(tiny.micro().models)
    state = abstract_state(boxed, optimizer, chosen, mesh)
    homes = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state.params)}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape in homes]
    count = len(jax.tree.leaves(nn.meta.unbox(state.params)))
    assert len(moments) >= count
    assert all(leaf.sharding == homes[leaf.shape] for leaf in moments)
    assert any(not leaf.sharding.is_fully_replicated for leaf in moments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "train.steps is 0: it must be above 0"),
        ("steps", 1.5, "train.steps is 1.5: a whole number is needed"),
        ("accumulation", 3, "batch_size is 64, which train.accumulation = 3 does not divide"),
        ("ema_decay", 1.0, "train.ema_decay is 1.0: 0 or more, and below 1"),
        ("remat", "dots", "train.remat is 'dots': choose of none, products, blocks"),
        ("concat", "image", "choose of frame, ends, either, nothing"),
        ("optimizer", "sgd", "choose of adamw, muon"),
        ("objective", "guess", "choose of denoise, reconstruct, align"),
        ("timestep_power", 0, "train.timestep_power is 0.0: it must be above 0"),
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
