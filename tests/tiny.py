"""The two small models of the golden files, weights rebuilt from names, and a smaller one."""

import functools
import json
from pathlib import Path
from typing import Any

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.models import Common, Models, abstract_models, build_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.weights.release import release_tensors

GOLDEN = Path(__file__).parent / "golden"


def config(kind: str) -> ConfigDict:
    """The config of `tiny_v` or `tiny_eps`, by the part behind the underscore."""
    return load_config(Path(__file__).parent / "configs" / f"tiny_{kind}.py")


def models(kind: str, **types: Any) -> Models:
    """The networks, equal to those of the config and with their hash, where no types are given."""
    types = dict.fromkeys(("dtype", "param_dtype"), jnp.dtype(jnp.float32)) | types
    hyperparameters = config(kind)
    sections = {name: hyperparameters[name].to_dict() for name in Models._fields}
    return build_models(sections, Common(**types))


@functools.cache
def params(kind: str, section: str) -> Any:
    """The golden weights of one network."""
    boxed = abstract_models(models(kind))
    return traverse_util.unflatten_dict(
        {
            tensor.path[1:]: jnp.asarray(
                tensor.from_release(np.asarray(golden_weights.tensor(name, tensor.shape)))
            )
            for name, tensor in release_tensors({section: boxed[section]}).items()
        }
    )


def animate(kind: str, base_scale: float | None = None) -> ImageToVideo:
    """The whole model, ready to sample."""
    chosen = config(kind)
    if base_scale is not None:
        chosen.diffusion.base_scale = base_scale
    return ImageToVideo(chosen, {name: params(kind, name) for name in Models._fields})


@functools.cache
def micro() -> ImageToVideo:
    """A model for tests of structure: no weight is zero, so every part of it acts."""
    chosen = load_config(Path(__file__).parent / "configs" / "micro.py")
    params = init_params(abstract_models(networks_of(chosen)), jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal

    def moved(leaf: jax.Array) -> np.ndarray:  # by NumPy, which compiles nothing for each shape
        return np.asarray(leaf) + np.float32(0.02) * draw(leaf.shape).astype(np.float32)

    return ImageToVideo(chosen, jax.tree.map(moved, params))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def pictures() -> np.ndarray:
    """The pictures that the VAE and the towers of `tiny_v` were shown."""
    seeds = golden("tiny_v_modules")["picture_seeds"]
    return np.stack([golden_weights.picture(int(seed), 64, 96) for seed in seeds])


def token_ids() -> np.ndarray:
    """All golden token ids."""
    return np.asarray(json.loads((GOLDEN / "tokens.json").read_text())["ids"], np.int32)
