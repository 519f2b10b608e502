"""States of a run to save and restore, with the awkward parts of real ones."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.state import TrainState


def make_mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])


def placed(leaf: jax.Array, devices: int) -> NamedSharding:
    """Matrices are split, all else is whole on every device."""
    spec = PartitionSpec("data") if leaf.ndim == 2 else PartitionSpec()
    return NamedSharding(make_mesh(devices), spec)


def make_state(step: int, *, ema: bool = True, devices: int = 8, width: int = 8) -> TrainState:
    """A state with the awkward parts of real ones: masked, empty, bfloat16 and integer leaves."""
    random = np.random.default_rng(step)

    def draw(*shape: int, dtype: type = jnp.float32) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), dtype)

    params = {
        "unet": {"in": {"kernel": draw(16, width), "bias": draw(3)}, "scale": draw()},
        "projector": {"block_10": {"latents": draw(8, 2, dtype=jnp.bfloat16)}},
    }
    trains = {"unet": True, "projector": False}
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.masked(optax.adamw(1e-4, mu_dtype=jnp.bfloat16), trains),
        optax.MultiSteps(optax.sgd(1e-3, momentum=0.9), 2).gradient_transformation(),
    )
    opt_state = jax.tree.map(
        lambda leaf: (
            draw(*leaf.shape, dtype=leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf + jnp.asarray(step, leaf.dtype)
        ),
        optimizer.init(params),
    )
    averages = jax.tree.map(lambda leaf: leaf + 1, params) if ema else None
    state = TrainState(jnp.int32(step), params, {}, opt_state, averages)
    return jax.device_put(state, jax.tree.map(lambda leaf: placed(leaf, devices), state))


def abstract(state: TrainState, devices: int = 8) -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed(leaf, devices)),
        state,
    )


def assert_same(ours: object, expected: object) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def steps_in(workdir: Path) -> list[str]:
    return sorted(os.listdir(workdir / "checkpoints"))
