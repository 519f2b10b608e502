"""Attention along time: few frames at very many pixels, in plain XLA operations.

Clips, pixels and heads are split by XLA itself, since these are but products and sums.
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
    """Both products as sums of element-wise ones, which XLA fuses with the softmax.

    Matrix units want 128 rows, and have t here; what they would do one pixel at a time, vector
    units do for all pixels, without transposing and without storing logits of padded tiles. Sums
    and softmax are in float32. Work outside matrix units grows with t^2.

    For TPUs alone: compiled for CPUs by jax 0.10.2, 1024 pixels of 16 frames come out wrong, where
    the same operations one by one agree with float64.
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
    """One batched matrix product over all pixels and heads, then another."""
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    logits = product(query.transpose(0, 2, 3, 1, 4), key.transpose(0, 2, 3, 4, 1))
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    y = product(weights, value.transpose(0, 2, 3, 1, 4)).astype(query.dtype)
    return y.transpose(0, 3, 1, 2, 4)
