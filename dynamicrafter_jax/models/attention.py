"""Attention: the interfaces of the kernels that models are given, and plain implementations."""

import functools
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float

from dynamicrafter_jax.models.partitioning import Names


@runtime_checkable
class AttentionFn(Protocol):
    """Softmax attention of `query` to `key` and `value`, scaled by 1/sqrt(d)."""

    def __call__(
        self,
        query: Float[Array, "*b l heads d"],
        key: Float[Array, "*c m heads d"],
        value: Float[Array, "*c m heads d"],
        mask: Bool[Array, "l m"] | None = None,
        names: Names = ("batch",),
    ) -> Float[Array, "*b l heads d"]:
        """Attends within each entry of the leading axes.

        Args:
            query: Leading axes are clips, or clips and frames.
            key: The same leading axes; or only clips, whose keys are shared by all of their frames.
            value: Like the keys.
            mask: Which keys each query sees; None for all.
            names: Logical names of the query's leading axes.
        """
        ...


@runtime_checkable
class TemporalAttentionFn(Protocol):
    """Softmax attention along the frames of a clip, at each pixel, scaled by 1/sqrt(d)."""

    def __call__(
        self,
        query: Float[Array, "b t n heads d"],
        key: Float[Array, "b t n heads d"],
        value: Float[Array, "b t n heads d"],
    ) -> Float[Array, "b t n heads d"]: ...


def plain_attention(
    query: Float[Array, "*b l heads d"],
    key: Float[Array, "*c m heads d"],
    value: Float[Array, "*c m heads d"],
    mask: Bool[Array, "l m"] | None = None,
    names: Names = ("batch",),
) -> Float[Array, "*b l heads d"]:
    """The default `AttentionFn`: two einsums around a float32 softmax."""
    del names  # XLA splits einsums by itself
    mask = None if mask is None else mask[None, None]
    attend = functools.partial(_attend, mask=mask)
    if query.ndim == 5:
        frames = 1 if key.ndim == 5 else None
        attend = jax.vmap(attend, (1, frames, frames), 1)
    return attend(query, key, value)


def plain_temporal_attention(
    query: Float[Array, "b t n heads d"],
    key: Float[Array, "b t n heads d"],
    value: Float[Array, "b t n heads d"],
) -> Float[Array, "b t n heads d"]:
    """The default `TemporalAttentionFn`: two einsums around a float32 softmax."""
    return jax.vmap(_attend, 2, 2)(query, key, value)


def _attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # the library promotes bfloat16 inside
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
