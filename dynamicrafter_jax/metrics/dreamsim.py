"""DreamSim, a distance between pictures fitted to human judgments (arXiv 2306.09344).

Each picture becomes a vector: the outputs of three vision transformers (DINO, CLIP and OpenCLIP,
each ViT-B/16), concatenated, or that of DINO alone. The distance is 1 minus the cosine between
vectors.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.resizing import resize
from dynamicrafter_jax.metrics.vit import VisionTransformer, gelu, quick_gelu
from dynamicrafter_jax.models.clip import PIXEL_MEAN, PIXEL_STD
from dynamicrafter_jax.models.layers import Module

IMAGE_SIZE = 224

BRANCHES = {"ensemble": ("dino", "clip", "open_clip"), "dino_vitb16": ("dino",)}
"""The networks in each kind of DreamSim."""

# Mean and standard deviation of the pixels that DINO was trained with, in [0, 1].
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class DreamSim(Module):
    """The networks of DreamSim; the default sizes are those of the released weights.

    Attributes:
        branches: Names of the networks whose outputs are concatenated.
        width: Width of their tokens.
        layers: Number of their blocks.
        heads: Number of their attention heads.
        embedding: Width of the joint embeddings of CLIP and OpenCLIP.
    """

    branches: tuple[str, ...] = BRANCHES["ensemble"]
    width: int = 768
    layers: int = 12
    heads: int = 12
    embedding: int = 512

    @nn.compact
    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns the networks' outputs for pictures of any size, concatenated."""
        pixels = resize(images, IMAGE_SIZE, IMAGE_SIZE).astype(jnp.float32) / 255
        return jnp.concatenate([self._branch(name)(pixels) for name in self.branches], axis=-1)

    def _branch(self, name: str) -> Any:
        """Returns the network with this name; it takes pixels in [0, 1] and normalises them."""
        sizes: Any = {"width": self.width, "layers": self.layers, "heads": self.heads}
        mean, std = PIXEL_MEAN, PIXEL_STD
        if name == "dino":
            mean, std = _IMAGENET_MEAN, _IMAGENET_STD
            network = VisionTransformer(epsilon=1e-6, name=name, **sizes)
        else:
            activation = {"clip": quick_gelu, "open_clip": gelu}[name]
            network = VisionTransformer(self.embedding, activation, name=name, **sizes)
        offset, scale = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std))
        return lambda pixels: network((pixels - offset) / scale)


def embed(
    params: PyTree, images: UInt8[Array, "b h w 3"], model: DreamSim | None = None
) -> Float[Array, "b d"]:
    """Returns a vector for each picture, with mean 0 and length 1.

    Args:
        params: From `dreamsim_weights.load_dreamsim`.
        images: Pictures of any size. They are resized to squares of 224 pixels as Pillow does,
            whatever their aspect ratio.
        model: The model that the parameters belong to; by default the released model that has these
            networks.
    """
    model = model_of(params) if model is None else model
    features: Any = model.apply({"params": params}, images)
    centred = features - features.mean(-1, keepdims=True)
    return centred / jnp.linalg.norm(centred, axis=-1, keepdims=True)


def distance(x: Float[Array, "*b d"], y: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Returns the distances between pictures, 0 to 2, from their vectors (see `embed`)."""
    return 1 - (x * y).sum(-1)


def model_of(params: PyTree) -> DreamSim:
    """Returns the released model that has exactly the networks in `params`.

    Raises:
        UserError: No kind of DreamSim has these networks.
    """
    for branches in BRANCHES.values():
        if set(branches) == set(params):
            return DreamSim(branches)
    raise UserError(f"no kind of DreamSim has the networks {', '.join(sorted(params))}")
