"""The networks of DynamiCrafter, as Flax modules independent of files, meshes and diffusion."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamicrafter_jax.models.autoencoder import Autoencoder
from dynamicrafter_jax.models.clip import ImageEncoder, TextEncoder
from dynamicrafter_jax.models.layers import Common, Module, abstract_params
from dynamicrafter_jax.models.resampler import Projector
from dynamicrafter_jax.models.unet import UNet


class Models(NamedTuple):
    """The five networks; their parameters are a dict with the same keys."""

    unet: UNet
    vae: Autoencoder
    text_encoder: TextEncoder
    image_encoder: ImageEncoder
    projector: Projector

    def apply(self, name: str, params: PyTree, *inputs: Any, method: str | None = None) -> Any:
        """Runs the network `name` with its part of `params`."""
        return getattr(self, name).apply({"params": params[name]}, *inputs, method=method)


def build_models(
    hyperparameters: Mapping[str, Mapping[str, Any]], common: Common | None = None
) -> Models:
    """Builds the five networks.

    Args:
        hyperparameters: The fields of each network, by the names in `Models`.
        common: Types and kernels of all networks; `norm_groups` is set for each network.

    Raises:
        TypeError: A network has no field with a given name.
    """
    classes: dict[str, type[Module]] = {
        "unet": UNet,
        "vae": Autoencoder,
        "text_encoder": TextEncoder,
        "image_encoder": ImageEncoder,
        "projector": Projector,
    }
    common = common or Common()
    networks: dict[str, Any] = {
        name: cls(**hyperparameters[name], common=common) for name, cls in classes.items()
    }
    return Models(**networks)


@functools.lru_cache(maxsize=8)  # tracing a U-Net takes seconds
def abstract_models(models: Models) -> dict[str, PyTree]:
    """Returns the parameters of all networks as boxed shapes, without computing anything.

    Args:
        models: From `build_models`.

    Returns:
        For each name in `Models`, a tree whose leaves are `models.layers.Parameter`.
    """

    def float_input(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    unet, vae, text_encoder, image_encoder, projector = models
    side = unet.size_multiple
    inputs: dict[str, tuple] = {
        "unet": (
            float_input(1, 1, side, side, unet.in_channels),
            float_input(1),
            float_input(1, 1, unet.context_dim),
            float_input(1, 1, 1, unet.context_dim),
            float_input(1),
        ),
        "vae": (float_input(1, vae.downsampling, vae.downsampling, 3),),
        "text_encoder": (jax.ShapeDtypeStruct((1, text_encoder.context_length), jnp.int32),),
        "image_encoder": (float_input(1, image_encoder.image_size, image_encoder.image_size, 3),),
        "projector": (float_input(1, 1, projector.embedding_dim),),
    }
    modules: dict[str, Module] = models._asdict()
    return {name: abstract_params(module, *inputs[name]) for name, module in modules.items()}


__all__ = ["Common", "Models", "abstract_models", "build_models"]
