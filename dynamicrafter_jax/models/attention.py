"""Attention: the callable given to every model, and the U-Net's two transformers."""

import functools
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamicrafter_jax.models.layers import (
    ALONG_TIME,
    WITHIN_FRAMES,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    constrain,
    zeros,
)


@runtime_checkable
class AttentionFn(Protocol):
    """Softmax attention of `query` to `key` and `value`, scaled by 1/sqrt(d)."""

    def __call__(
        self,
        query: Float[Array, "b l heads d"],
        key: Float[Array, "b m heads d"],
        value: Float[Array, "b m heads d"],
        mask: Bool[Array, "l m"] | None = None,
    ) -> Float[Array, "b l heads d"]: ...


def plain_attention(
    query: Float[Array, "b l heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    mask: Bool[Array, "l m"] | None = None,
) -> Float[Array, "b l heads d"]:
    """The default `AttentionFn`: two einsums around a float32 softmax."""
    mask = None if mask is None else mask[None, None]
    with jax.numpy_dtype_promotion("standard"):  # the library promotes bfloat16 inside
        return jax.nn.dot_product_attention(query, key, value, mask=mask)


class SelfAttention(Module):
    """Multi-head attention of tokens to themselves, without biases on query, key and value."""

    heads: int
    head_width: int
    attention: AttentionFn = plain_attention

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        project = functools.partial(_heads, self)
        y = self.attention(project("query")(x), project("key")(x), project("value")(x))
        return _merge_heads(self, x.shape[-1])(y)


class DualCrossAttention(Module):
    """One query over two contexts, text and image, whose results are added.

    This is where the image's context enters (paper, section 3.2, Eq. 3): text tokens have keys
    and values of their own, image tokens theirs, and frame i sees only its own image tokens.

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
        image: Float[Array, "b t n d"],
    ) -> Float[Array, "b t l c"]:
        b, t, tokens, c = x.shape
        context = functools.partial(_heads, self, axis="context")
        query = _heads(self, "query")(x)
        # All frames read the same text, so they are one long sequence of queries to it.
        from_text = self.attention(
            query.reshape(b, t * tokens, *query.shape[3:]),
            context("text_key")(text),
            context("text_value")(text),
        ).reshape(query.shape)
        from_image = self.attention(
            query.reshape(b * t, tokens, *query.shape[3:]),
            context("image_key")(image.reshape(b * t, *image.shape[2:])),
            context("image_value")(image.reshape(b * t, *image.shape[2:])),
        ).reshape(query.shape)
        if self.learnable_image_scale:
            alpha = self.parameter("alpha", zeros, (), ())
            from_image *= (jnp.tanh(alpha) + 1).astype(self.dtype)
        return _merge_heads(self, c)(from_text + from_image)


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

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b t n d"],
    ) -> Float[Array, "b t h w c"]:
        x = constrain(x, WITHIN_FRAMES)
        b, t, h, w, c = x.shape
        inner = self.heads * self.head_width
        y = GroupNorm(epsilon=1e-6, name="norm", **self.types)(x)
        y = Linear((inner,), ("embed", "inner"), name="proj_in", **self.types)(y)
        y = y.reshape(b, t, h * w, inner)

        z = LayerNorm(name="norm1", **self.types)(y).reshape(b * t, h * w, inner)
        z = SelfAttention(self.heads, self.head_width, self.attention, name="attn1", **self.types)(
            z
        )
        y += z.reshape(y.shape)
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

        y = y.reshape(b, t, h, w, inner)
        return x + Linear((c,), ("inner", "embed"), zero=True, name="proj_out", **self.types)(y)


class TemporalTransformer(Module):
    """At each pixel, along time: self-attention twice, feed-forward. No positions, no mask."""

    heads: int
    head_width: int
    attention: AttentionFn = plain_attention

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        attend = functools.partial(
            SelfAttention, self.heads, self.head_width, self.attention, **self.types
        )
        x = constrain(x, ALONG_TIME)
        b, t, h, w, c = x.shape
        inner = self.heads * self.head_width
        y = GroupNorm(axes=3, epsilon=1e-6, name="norm", **self.types)(x)
        y = Linear((inner,), ("embed", "inner"), name="proj_in", **self.types)(y)
        y = y.transpose(0, 2, 3, 1, 4).reshape(b * h * w, t, inner)

        y += attend(name="attn1")(LayerNorm(name="norm1", **self.types)(y))
        y += attend(name="attn2")(LayerNorm(name="norm2", **self.types)(y))
        y += FeedForward(name="ff", **self.types)(LayerNorm(name="norm3", **self.types)(y))

        y = y.reshape(b, h, w, t, inner).transpose(0, 3, 1, 2, 4)
        return x + Linear((c,), ("inner", "embed"), zero=True, name="proj_out", **self.types)(y)


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
