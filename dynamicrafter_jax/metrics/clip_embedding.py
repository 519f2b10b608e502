"""The joint embedding of texts and pictures by OpenCLIP ViT-H/14 (arXiv 2103.00020, 2212.07143).

DynamiCrafter takes hidden states of the same towers. Here they run to the end, with projections.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, Float, Int, PyTree, UInt8

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.resizing import resize
from dynamicrafter_jax.models.clip import PIXEL_MEAN, PIXEL_STD, ImageEncoder, TextEncoder
from dynamicrafter_jax.models.layers import LayerNorm, Module, abstract_params
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.runtime.provenance import sha256_of
from dynamicrafter_jax.weights.release import RELEASE, Naming, ReleaseTensor, Table, release_tensors
from dynamicrafter_jax.weights.tensors import StoredTensor, describe_mismatch, open_tensors

_ENDS: Table = {
    "text_projection": ("text_projection", {}),
    "image_projection": ("visual.proj", {}),
    "ln_post": ("visual.ln_post", {}),
}
_NAMING = Naming(
    {"text_encoder": "", "image_encoder": "visual", "ends": ""},
    {**RELEASE.tables, "ends": _ENDS},
)
_TOWERS = ("text_encoder", "image_encoder")
_UNUSED = "logit_scale|attn_mask"


class ClipEmbedding(Module):
    """Both towers, complete, with their projections.

    Attributes:
        text_encoder: The text tower. It skips its last block, so it is given one more than it runs.
        image_encoder: The vision tower.
        embedding: Width of the joint embedding.
    """

    text_encoder: TextEncoder = TextEncoder(layers=25)
    image_encoder: ImageEncoder = ImageEncoder()
    embedding: int = 1024

    def setup(self) -> None:
        """Declares what comes after the towers."""
        self.ln_post = LayerNorm()

        def projection(name: str, width: int) -> Array:
            init = nn.initializers.normal(width**-0.5)
            return self.weight(name, init, (width, self.embedding), ("embed", None))

        self.text_projection_matrix = projection("text_projection", self.text_encoder.width)
        self.image_projection_matrix = projection("image_projection", self.image_encoder.width)

    def __call__(
        self, ids: Int[Array, "b l"], images: UInt8[Array, "n h w 3"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "n d"]]:
        """Returns the vectors of texts and pictures."""
        return self.texts(ids), self.images(images)

    def texts(self, ids: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Returns the vectors of texts, given as token ids from `tokenizer.tokenize`."""
        states = self.text_encoder(ids)
        end = ids.argmax(-1)  # the end token has the highest id
        return states[jnp.arange(len(ids)), end] @ self.text_projection_matrix

    def images(self, images: UInt8[Array, "n h w 3"]) -> Float[Array, "n d"]:
        """Returns the vectors of pictures of any size, cropped to the central square."""
        tokens = self.image_encoder(preprocess(images, self.image_encoder.image_size))
        return self.ln_post(tokens[:, 0]) @ self.image_projection_matrix


def preprocess(
    images: UInt8[Array, "n h w 3"], size: int = 224
) -> Float[Array, "n {size} {size} 3"]:
    """Prepares the vision tower's input as CLIP's authors do.

    The shorter side is resized to `size` by Pillow's bicubic filter, and the longer side is cropped
    to its middle.
    """
    _, h, w, _ = images.shape
    shorter = min(h, w)
    height, width = (size * side // shorter for side in (h, w))
    top, left = (round((side - size) / 2) for side in (height, width))
    resized = resize(images, height, width)[:, top : top + size, left : left + size]
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    return (resized.astype(jnp.float32) / 255 - mean) / std


def text_vectors(
    params: PyTree, ids: Int[Array, "b l"], model: ClipEmbedding | None = None
) -> Float[Array, "b d"]:
    """Returns the vectors of texts, with parameters from `load_clip_embedding`."""
    vectors: Any = (model or ClipEmbedding()).apply({"params": params}, ids, method="texts")
    return vectors


def frame_vectors(
    params: PyTree, frames: UInt8[Array, "b t h w 3"], model: ClipEmbedding | None = None
) -> Float[Array, "b t d"]:
    """Returns the vectors of all frames; a network for `features.Extractor`."""
    b, t, *size = frames.shape
    flat = frames.reshape(b * t, *size)
    vectors: Any = (model or ClipEmbedding()).apply({"params": params}, flat, method="images")
    return vectors.reshape(b, t, -1)


def load_clip_embedding(path: epath.PathLike, model: ClipEmbedding | None = None) -> PyTree[Array]:
    """Reads the parameters of `ClipEmbedding`, all of them or none.

    Args:
        path: A file with OpenCLIP's own names, such as `open_clip_model.safetensors` or
            `open_clip_pytorch_model.bin` of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
        model: The model, if its sizes are not those of ViT-H/14.

    Raises:
        UserError: It is missing or broken, would run code, or a tensor is missing, unexpected,
            misshapen or not finite.
    """
    if not as_path(path).exists():
        raise UserError(
            f"{path} does not exist: similarity to texts needs the weights of OpenCLIP ViT-H/14, "
            "such as open_clip_model.safetensors of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )
    with open_tensors(path) as stored:
        tensors = {name: t for name, t in stored.items() if not re.fullmatch(_UNUSED, name)}
        places = _places(model or ClipEmbedding())
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := describe_mismatch({name: p.shape for name, p in places.items()}, shapes):
            raise UserError(f"{path} is not this CLIP: {wrong}")
        return traverse_util.unflatten_dict(
            {_path(place): _read(path, place, tensors) for place in places.values()}
        )


def describe_clip(path: epath.PathLike) -> dict[str, str]:
    """Returns the settings that determine the vectors, to be stored with measures.

    Args:
        path: The weights, whose SHA-256 is included.
    """
    return {
        "network": "OpenCLIP ViT-H/14, joint embedding",
        "weights_sha256": sha256_of(as_path(path)),
        "preprocessing": "8-bit bicubic, shorter side to 224, as Pillow does it; central 224x224",
    }


def _places(model: ClipEmbedding) -> dict[str, ReleaseTensor]:
    ids = jax.ShapeDtypeStruct((1, model.text_encoder.context_length), jnp.int32)
    size = model.image_encoder.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    boxed = abstract_params(model, ids, images)
    ends = {name: tree for name, tree in boxed.items() if name not in _TOWERS}
    sections = {name: boxed[name] for name in _TOWERS} | {"ends": ends}
    return release_tensors(sections, _NAMING)


def _path(place: ReleaseTensor) -> tuple[str, ...]:
    return place.path[1:] if place.path[0] == "ends" else place.path


def _read(path: epath.PathLike, place: ReleaseTensor, tensors: Mapping[str, StoredTensor]) -> Array:
    values = place.from_release(tensors[place.name].read()).astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} can't be used: {place.name} holds NaN or infinite values")
    return jnp.asarray(values)
