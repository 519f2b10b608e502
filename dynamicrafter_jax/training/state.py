"""The state of a run, created leaf by leaf in its final place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from dynamicrafter_jax import sharding
from dynamicrafter_jax.training import freezing
from dynamicrafter_jax.training.distillation import sections_of, start_of
from dynamicrafter_jax.training.settings import TrainSettings


class TrainState(NamedTuple):
    """Everything that changes during a run, and the frozen parameters.

    Attributes:
        step: Optimizer steps done.
        params: The parameters that train, by section.
        frozen: The parameters that don't train, by section.
        opt_state: The optimizer's state, for `params` only.
        ema: The averaged `params`, or None.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: PyTree
    ema: dict[str, Any] | None

    @property
    def best_params(self) -> dict[str, Any]:
        """The parameters to use: the averages if there are any, joined with the frozen ones."""
        return freezing.join(self.params if self.ema is None else self.ema, self.frozen)


def abstract_state(
    boxed: PyTree, optimizer: optax.GradientTransformation, settings: TrainSettings, mesh: Mesh
) -> TrainState:
    """Returns the state as shapes with shardings, without computing anything.

    Args:
        boxed: Abstract parameters by section, as from `models.abstract_models`.
        optimizer: See `optimizer.make_optimizer`.
        settings: Say what trains, and whether there are averages.
        mesh: The mesh that the state will be on.
    """
    boxed = sections_of(boxed, settings.objective)
    shapes = nn.meta.unbox(boxed)
    placed = jax.tree.map(_place, shapes, sharding.parameter_shardings(boxed, mesh))
    params, frozen = freezing.split(placed, settings.trainable)
    whole = sharding.replicated(mesh)
    homes = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        # The path of a moment ends with the keys of its parameter.
        keys = _keys(path)
        likes = (homes.get(keys[start:]) for start in range(len(keys)))
        for like in filter(None, likes):
            if like.shape == leaf.shape:
                return _place(leaf, like.sharding)
        return _place(leaf, whole)

    opt_state = jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step, params, frozen, opt_state, params if settings.ema_decay else None)


def create_state(
    abstract: TrainState,
    leaf: Callable[[str], Array | np.ndarray],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """Returns the state that a run starts from.

    Args:
        abstract: See `abstract_state`.
        leaf: Returns the starting value of the parameter at a path, "section/module/.../leaf".
        optimizer: See `optimizer.make_optimizer`.
    """

    def place(path: tuple, shape: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return sharding.place(leaf(start_of(name)), shape.sharding)

    params = jax.tree_util.tree_map_with_path(place, abstract.params)
    frozen = jax.tree_util.tree_map_with_path(place, abstract.frozen)
    # One program makes all zeros, with each moment placed like its parameter.
    shardings = jax.tree.map(lambda shape: shape.sharding, abstract.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    ema = None if abstract.ema is None else jax.tree.map(jnp.copy, params)
    step = sharding.place(jnp.zeros((), jnp.int32), abstract.step.sharding)
    return TrainState(step, params, frozen, opt_state, ema)


def _place(leaf: Any, placed: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


def _keys(path: tuple) -> tuple[str, ...]:
    """Returns the dict keys in a path through a tree."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
