"""Attention: the callable given to every model, and the U-Net's two transformers."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamicrafter_jax.models.layers import GroupNorm, LayerNorm, Linear, Module, zeros
from dynamicrafter_jax.models.partitioning import (
    ALONG_TIME,
    WITHIN_FRAMES,
    Names,
    constrain,
    exchange,
)


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
            key: The same leading axes; or clips alone, whose keys all their frames read.
            value: Like the keys.
            mask: Which keys each query sees; without one, all.
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


class SelfAttention(Module):
    """Multi-head attention of tokens to themselves, without biases on query, key and value."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "... d"], attend: Callable[[Array, Array, Array], Array]
    ) -> Float[Array, "... d"]:
        """Applies `attend` to query, key and value, whose trailing axes are heads and width."""
        project = functools.partial(_heads, self)
        y = attend(project("query")(x), project("key")(x), project("value")(x))
        return _merge_heads(self, x.shape[-1])(y)


class DualCrossAttention(Module):
    """One query over two contexts, text and image, whose results are added.

    This is where the image's context enters (paper, section 3.2, Eq. 3): text tokens have keys
    and values of their own, image tokens theirs. A frame sees only its own image tokens where each
    frame has some, and all of them where the clip has them in common.

    Attributes:
        learnable_image_scale: Whether the image's part is scaled by tanh(alpha) + 1, as in the
            256 release.
    """

    heads: int
    head_width: int
    learnable_image_scale: bool = False
    attention: AttentionFn = plain_attention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t l c"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
    ) -> Float[Array, "b t l c"]:
        context = functools.partial(_heads, self, axis="context")
        attend = functools.partial(self.attention, names=("batch", "frames"))
        query = _heads(self, "query")(x)
        from_text = attend(query, context("text_key")(text), context("text_value")(text))
        from_image = attend(query, context("image_key")(image), context("image_value")(image))
        if self.learnable_image_scale:
            alpha = self.weight("alpha", zeros, (), ())
            from_image *= jnp.tanh(alpha) + 1
        return _merge_heads(self, x.shape[-1])(from_text + from_image)


class FeedForward(Module):
    """GEGLU feed-forward of four times the width (arXiv 2002.05202): value * GELU(gate)."""

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        # Value and gate are an axis of their own, so that splitting "mlp" splits both alike.
        y = Linear((2, 4 * width), ("embed", None, "mlp"), name="in", **self.types)(x)
        y = y[..., 0, :] * jax.nn.gelu(y[..., 1, :], approximate=False)
        return Linear((width,), ("mlp", "embed"), name="out", **self.types)(y)


class SpatialTransformer(Module):
    """Within each frame: self-attention, attention to text and image, feed-forward."""

    heads: int
    head_width: int
    learnable_image_scale: bool = False
    attention: AttentionFn = plain_attention
    norm_groups: int = 32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        x = constrain(x.reshape(b, t, h * w, c), WITHIN_FRAMES)
        inner = self.heads * self.head_width
        y = GroupNorm(1e-6, self.norm_groups, name="norm", **self.types)(x.reshape(b, t, h, w, c))
        y = Linear((inner,), ("embed", "inner"), name="proj_in", **self.types)(y)
        y = y.reshape(b, t, h * w, inner)

        attend = functools.partial(self.attention, names=("batch", "frames"))
        z = LayerNorm(name="norm1", **self.types)(y)
        y += SelfAttention(self.heads, self.head_width, name="attn1", **self.types)(z, attend)
        z = LayerNorm(name="norm2", **self.types)(y)
        y += DualCrossAttention(
            self.heads,
            self.head_width,
            self.learnable_image_scale,
            self.attention,
            name="attn2",
            **self.types,
        )(z, text, image)
        y += FeedForward(name="ff", **self.types)(LayerNorm(name="norm3", **self.types)(y))

        x += Linear((c,), ("inner", "embed"), zero=True, name="proj_out", **self.types)(y)
        return x.reshape(b, t, h, w, c)


class TemporalTransformer(Module):
    """At each pixel, along time: self-attention twice, feed-forward. No positions, no mask."""

    heads: int
    head_width: int
    attention: TemporalAttentionFn = plain_temporal_attention
    norm_groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        x = exchange(x.reshape(b, t, h * w, c), WITHIN_FRAMES, ALONG_TIME)
        inner = self.heads * self.head_width
        y = GroupNorm(1e-6, self.norm_groups, name="norm", **self.types)(x)
        y = Linear((inner,), ("embed", "inner"), name="proj_in", **self.types)(y)

        attend = functools.partial(SelfAttention, self.heads, self.head_width, **self.types)
        for i in (1, 2):
            z = LayerNorm(name=f"norm{i}", **self.types)(y)
            y += attend(name=f"attn{i}")(z, self.attention)
        y += FeedForward(name="ff", **self.types)(LayerNorm(name="norm3", **self.types)(y))

        x += Linear((c,), ("inner", "embed"), zero=True, name="proj_out", **self.types)(y)
        return exchange(x, ALONG_TIME, WITHIN_FRAMES).reshape(b, t, h, w, c)


def _heads(module: SelfAttention | DualCrossAttention, name: str, axis: str = "embed") -> Linear:
    """The projection called `name` from width `axis` to heads."""
    return Linear(
        (module.heads, module.head_width),
        (axis, "heads", "head_width"),
        use_bias=False,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        name=name,
    )


def _merge_heads(module: SelfAttention | DualCrossAttention, width: int) -> Linear:
    """The projection from heads back to `width`."""
    return Linear(
        (width,),
        ("heads", "head_width", "embed"),
        num_inputs=2,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        name="out",
    )
