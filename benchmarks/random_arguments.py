"""Models with random parameters, none of them zero, and arguments for them, in benchmarks."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict
from PIL import Image

from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import Parameter
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.sampling.stages import latent_shape

# A prime, so that the rows of no matrix are alike.
_PERIOD = 1_000_003

PROMPT = "a rocket lifting off from its launch pad"


def random_params(boxed: PyTree, seed: int = 0) -> PyTree:
    """Returns parameters in the shapes of an abstract tree, as arrays on the host.

    A million numbers are repeated over and over, as fast as memory is written. Kernels keep
    the variance of their inputs. Layers that start at zero in training don't here, so that every
    part has an effect.

    Args:
        boxed: A tree with leaves `Parameter`, from `models.abstract_models`.
        seed: Seed of the numbers.
    """
    drawn = np.random.default_rng(seed).uniform(-1, 1, _PERIOD).astype(np.float32)

    def fill(path: tuple[Any, ...], box: Parameter) -> np.ndarray:
        values = np.resize(drawn, box.value.shape)
        match path[-1].key:
            case "scale":
                values = 1 + 0.2 * values
            case "bias":
                values = 0.05 * values
            case _:
                values *= math.sqrt(3 / _fan_in(box))
        return np.asarray(values, box.value.dtype)

    return jax.tree_util.tree_map_with_path(
        fill, boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter)
    )


def unet_shapes(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of the U-Net's inputs for one clip."""
    models = networks_of(config)
    t, h, w, _ = latent_shape(models, SamplingSettings.from_config(config.sampling))
    width, length = models.unet.context_dim, models.text_encoder.context_length
    shapes = (
        (1, t, h, w, models.unet.in_channels),
        (1,),
        (1, length, width),
        (1, t, models.projector.num_queries, width),
        (1,),
    )
    return tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)


def _fan_in(box: Parameter) -> int:
    """Returns how many numbers a kernel adds up for one output; 1 for other parameters."""
    shape = box.value.shape
    if len(shape) < 2:
        return 12
    return math.prod(shape[:-1]) if box.names[0] in (None, "heads") else shape[0]


def random_model(config: ConfigDict) -> ImageToVideo:
    """Returns the whole model with random weights."""
    return ImageToVideo(config, random_params(abstract_models(networks_of(config))))


def picture(config: ConfigDict) -> Image.Image:
    """Returns a picture in the size of the config, so that it is not resized."""
    size = config.sampling
    draw = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)
    return Image.fromarray(draw)
