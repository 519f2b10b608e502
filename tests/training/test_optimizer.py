import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import release_files
import tiny
from flax import traverse_util
from optax.contrib import scale_by_muon

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.training.optimizer import (
    _matrix,
    learning_rate,
    make_optimizer,
    orthogonalize,
)
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.release import release_tensors


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


PARAMS = {
    "norm": {"scale": (5,)},
    "text": {"embedding": (7, 4)},
    "attn2": {"text_value": {"kernel": (6, 2, 5)}, "out": {"kernel": (2, 5, 6)}},
}


def leaves(seed, scale=1.0) -> Any:
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(
        lambda shape: scale * draw(shape), PARAMS, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def stepped(chosen, params, gradients) -> Any:
    """Parameters after some steps of the optimizer, in its own float32."""
    optimizer = make_optimizer(chosen)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def clipped(gradient, most):
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda leaf: leaf * min(1, most / norm), gradient)


def adam(p, gradients, *, rate, beta1, beta2, epsilon, decay, nesterov=False):
    """Algorithm 2 of arXiv 1711.05101; with Nesterov's momentum, as Dozat's (2016), if asked."""
    m = v = 0
    for t, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        ahead = m / (1 - beta1**t)
        if nesterov:
            ahead = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
        p = p - rate * (ahead / (np.sqrt(v / (1 - beta2**t)) + epsilon) + decay * p)
    return p


# Every number is one that no default is near, and matters to the result.
COMMON = {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.7, "clip_norm": 0.6}


def test_adamw_takes_the_steps_of_its_paper():
    params, gradients = leaves(0), [leaves(1), leaves(2, 1e-2), leaves(3)]
    ours = stepped(settings(epsilon=0.05, **COMMON), params, gradients)
    gradients = [clipped(gradient, 0.6) for gradient in gradients]

    def by_hand(decay):
        found = {"rate": 0.1, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.05, "decay": decay}
        return jax.tree.map(lambda p, *gs: adam(p, gs, **found), params, *gradients)

    wanted, without_decay = by_hand(0.7), by_hand(0.0)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, wanted, without_decay)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(b - c).max() > 0.1


def orthogonal(matrix):
    """Five of Newton and Schulz's iterations, scaled (arXiv 2502.16982, sections 2.1 and 2.2)."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return 0.2 * math.sqrt(max(matrix.shape)) * x


def test_muon_takes_the_steps_of_its_paper():
    params, gradients = leaves(0), [leaves(1), leaves(2, 1e-2), leaves(3)]
    ours = stepped(settings(optimizer="muon", **COMMON), params, gradients)
    gradients = [clipped(gradient, 0.6) for gradient in gradients]
    for name, rows in {"text_value": 6, "out": 10}.items():
        p, m = params["attn2"][name]["kernel"].reshape(rows, -1), 0
        for gradient in gradients:
            g = gradient["attn2"][name]["kernel"].reshape(rows, -1)
            m = 0.8 * m + g
            p = p - 0.1 * (orthogonal(g + 0.8 * m) + 0.7 * p)
        kernel = ours["attn2"][name]["kernel"]
        np.testing.assert_allclose(kernel.reshape(rows, -1), p, rtol=1e-4, atol=1e-5)
    found = {"rate": 0.1, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-8, "decay": 0.0}
    for network, name in (("norm", "scale"), ("text", "embedding")):
        given = [gradient[network][name] for gradient in gradients]
        wanted = adam(params[network][name], given, nesterov=True, **found)
        np.testing.assert_allclose(ours[network][name], wanted, rtol=1e-4, atol=1e-6)


def test_every_kernel_is_the_matrix_that_the_release_stores():
    """The release's linear maps are matrices of outputs and inputs, so they tell which is which."""
    boxed = abstract_params(release_files.micro())
    shapes: Any = traverse_util.flatten_dict(nn.meta.unbox(boxed))
    kernels = [one for one in release_tensors(boxed).values() if one.path[-1] == "kernel"]
    assert {"text_value", "image_value", "key_value", "qkv"} < {one.path[-2] for one in kernels}
    for tensor in kernels:
        keys = tuple(jax.tree_util.DictKey(key) for key in tensor.path)
        outputs, *inputs = tensor.shape
        matrix = _matrix(keys, jnp.zeros(shapes[tensor.path].shape))
        assert matrix.shape == (math.prod(inputs), outputs), tensor.path


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
        ("accumulation", 3, "batch_size is 64: give a multiple of train.accumulation, which is 3"),
        ("ema_decay", 1.0, "train.ema_decay is 1.0: give 0 or more, and below 1"),
        ("remat", "dots", "train.remat is 'dots': choose from none, products, blocks"),
        ("concat", "image", "choose from frame, ends, either, nothing"),
        ("optimizer", "sgd", "choose from adamw, muon"),
        ("objective", "guess", "choose from denoise, distill, reconstruct, align"),
        ("timestep_power", 0, "train.timestep_power is 0.0: it must be above 0"),
        ("decay", "linear", "choose from constant, cosine"),
        ("trainable", "some", "train.trainable is 'some': choose from projector_and_image"),
        ("trainable", "unet/(", "is not a regular expression"),
        ("keep_every", 0, "train.keep_every is 0: give at least 1, or None for none"),
        ("sample_images", ("a.png",), "1 entries, but train.sample_prompts 0"),
        ("seed", 2**32, "choose one below 2^32"),
        ("speed", 1, "unknown train setting speed"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_with_its_name(field, value, message):
    with pytest.raises(UserError) as error:
        settings(**{field: value})
    assert message in str(error.value)
