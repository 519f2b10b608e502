"""A small model, its weights in a release's names, and starts of training out of files."""

import functools

import golden_weights
import jax
import numpy as np
import pytest
from flax import traverse_util
from release_files import micro

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.weights import load
from dynamicrafter_jax.weights.release import release_tensors, unused_tensors
from dynamicrafter_jax.weights.warm_start import open_start

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT, VISION = "cond_stage_model.model.", "embedder.model.visual."
SECTIONS = ("unet", "vae", "text_encoder", "image_encoder", "projector")
KEY = jax.random.key(7)


def small():
    """The smallest model, with one of everything that formats name in ways of their own."""
    config = micro()
    config.name = "small"
    config.vae.update(ch_mult=(1, 1, 2))
    config.text_encoder.update(layers=3)
    config.image_encoder.update(layers=2)
    return config


@functools.cache
def places():
    return release_tensors(load.abstract_params(small()))


@functools.cache
def release(*prefixes):
    """The tensors of its release file whose names start so; all, without prefixes."""
    shapes = {name: place.shape for name, place in places().items()}
    shapes |= {n: (3,) for n, fate in unused_tensors(text_layers=3).items() if fate == "carried"}
    return {
        name: golden_weights.tensor(name, shape)
        for name, shape in shapes.items()
        if name.startswith(prefixes or "")
    }


def expected(*sections):
    """The parameters in the release file, by path."""
    return {
        "/".join(place.path): place.from_release(release()[name])
        for name, place in places().items()
        if place.path[0] in sections
    }


@functools.cache
def drawn():
    """The parameters of a model that is wholly fresh, by path."""
    fresh = traverse_util.flatten_dict(init_params(load.abstract_params(small()), KEY), sep="/")
    return {path: np.asarray(values) for path, values in fresh.items()}


def begin(config=None, *, random_towers=False, **init):
    """Opens a start, and returns it with all its parameters by path."""
    with open_start(config or small(), init, KEY, random_towers=random_towers) as start:
        return start, {path: np.asarray(start.leaf(path)) for path in drawn()}


def begin_hub(**init):
    """Opens a start of hub files, and returns it with the parameters in them by path."""
    with open_start(small(), init, KEY, random_towers=True) as start:
        found = set(drawn()) - set(start.fresh)
        return start, {path: np.asarray(start.leaf(path)) for path in found}


def refusal(config=None, **init):
    """The message with which a start is refused."""
    with pytest.raises(UserError) as caught, open_start(config or small(), init, KEY):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(ours, theirs):
    for path, values in theirs.items():
        assert ours[path].dtype == values.dtype and np.array_equal(ours[path], values), path
