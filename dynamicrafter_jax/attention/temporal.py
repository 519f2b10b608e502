"""Attention along time: few frames at very many pixels, in plain XLA operations.

XLA itself splits clips, pixels and heads, since these are only products and sums.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def elementwise_temporal_attention(
    query: Float[Array, "b t n heads d"],
    key: Float[Array, "b t n heads d"],
    value: Float[Array, "b t n heads d"],
) -> Float[Array, "b t n heads d"]:
    """Attends with sums of element-wise products, which XLA fuses with the softmax.

    Matrix units need 128 rows, but here there are only t. Vector units do the same work for all
    pixels at once instead of one at a time, without transposing and without storing logits of
    padded tiles. Sums and softmax are in float32. Work outside matrix units grows with t^2.

    For TPUs only: compiled for CPUs by jax 0.10.2, results for 1024 pixels of 16 frames are wrong,
    while the same operations run one by one agree with float64.
    """
    logits = (query[:, :, None] * key[:, None]).astype(jnp.float32).sum(-1)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=2).astype(value.dtype)
    products = weights[..., None] * value[:, None]
    return products.astype(jnp.float32).sum(2).astype(query.dtype)


def batched_temporal_attention(
    query: Float[Array, "b t n heads d"],
    key: Float[Array, "b t n heads d"],
    value: Float[Array, "b t n heads d"],
) -> Float[Array, "b t n heads d"]:
    """Attends with two matrix products, each batched over all pixels and heads."""
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    logits = product(query.transpose(0, 2, 3, 1, 4), key.transpose(0, 2, 3, 4, 1))
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    y = product(weights, value.transpose(0, 2, 3, 1, 4)).astype(query.dtype)
    return y.transpose(0, 3, 1, 2, 4)
