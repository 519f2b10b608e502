"""Arithmetic that the networks need at least, counted from their traced forward passes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.sampling.stages import latent_shape
from dynamicrafter_jax.training.throughput import product_flops


class ForwardFlops(NamedTuple):
    """Floating-point operations of one forward pass, without guidance, for one clip.

    Products and convolutions count, a multiplication and its addition as two, with plain attention
    and nothing split: 4.84, 12.54 and 52.28 TFLOP for the U-Net of the three releases. The release
    itself takes 0.06 more, as it makes keys and values of the text for every frame anew.

    Attributes:
        unet: One pass.
        vae_encode: One frame.
        vae_decode: One frame.
        text_encoder: One text.
        image_encoder: One image.
        projector: One image.
    """

    unet: int
    vae_encode: int
    vae_decode: int
    text_encoder: int
    image_encoder: int
    projector: int


def forward_flops(config: ConfigDict, params: PyTree) -> ForwardFlops:
    """Counts the forward passes of a config's networks; nothing is computed.

    Args:
        config: As in `configs/`.
        params: Abstract parameters by section, unboxed.
    """
    models = networks_of(config)
    settings = SamplingSettings.from_config(config.sampling)
    t, h, w, z = latent_shape(models, settings)
    f = models.vae.downsampling
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    def flops(name: str, *inputs: jax.ShapeDtypeStruct, method: str | None = None) -> int:
        def forward(params: PyTree, *inputs: jax.Array) -> PyTree:
            return models.apply(name, params, *inputs, method=method)

        return product_flops(jax.jit(forward).trace(params, *inputs).jaxpr)

    def of(*shape: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    side = models.image_encoder.image_size
    length = models.text_encoder.context_length
    tokens = 1 + (side // models.image_encoder.patch_size) ** 2
    embedding = models.projector.embedding_dim
    width = models.unet.context_dim
    image = jax.eval_shape(
        lambda params, tokens: conditioning.frame_context(
            models,
            Conditioning(
                text=jnp.zeros((1, length, width)),
                image=conditioning.project_tokens(models, params, tokens),
                concat=jnp.zeros((1, t, h, w, z)),
                fs=jnp.zeros(1),
            ),
            t,
        ),
        params,
        of(1, tokens, embedding),
    )
    return ForwardFlops(
        unet=flops(
            "unet",
            of(1, t, h, w, models.unet.in_channels),
            of(1),
            of(1, length, width),
            of(*image.shape),
            of(1),
        ),
        vae_encode=flops("vae", of(1, h * f, w * f, 3), method="encode"),
        vae_decode=flops("vae", of(1, h, w, z), method="decode"),
        text_encoder=flops("text_encoder", of(1, length, dtype=jnp.int32)),
        image_encoder=flops("image_encoder", of(1, side, side, 3)),
        projector=flops("projector", of(1, tokens, embedding)),
    )
