"""The U-Net's two transformers: within frames, and along time."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamicrafter_jax.models.layers import GroupNorm, LayerNorm, Linear, Module, zeros
from dynamicrafter_jax.models.partitioning import (
    ALONG_TIME,
    WITHIN_FRAMES,
    constrain,
    exchange,
)


class SelfAttention(Module):
    """Multi-head self-attention, without biases on query, key and value."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "... d"], attend: Callable[[Array, Array, Array], Array]
    ) -> Float[Array, "... d"]:
        """Applies `attend` to query, key and value, whose trailing axes are heads and width."""
        project = functools.partial(_heads, self.heads, self.head_width)
        y = attend(project("query")(x), project("key")(x), project("value")(x))
        return _merge_heads(x.shape[-1])(y)


class DualCrossAttention(Module):
    """Attention of one query to two contexts, text and image, whose results are added.

    This is where the image's context enters (paper, section 3.2, Eq. 3): text and image tokens have
    separate keys and values. A frame sees only its own image tokens if each frame has some, and all
    of them if they belong to the whole clip.

    Attributes:
        learnable_image_scale: Whether the image's result is scaled by tanh(alpha) + 1, as in the
            256 release.
    """

    heads: int
    head_width: int
    learnable_image_scale: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t l c"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
    ) -> Float[Array, "b t l c"]:
        project = functools.partial(_heads, self.heads, self.head_width)
        context = functools.partial(project, axis="context")
        attend = functools.partial(self.common.attention, names=("batch", "frames"))
        query = project("query")(x)
        from_text = attend(query, context("text_key")(text), context("text_value")(text))
        from_image = attend(query, context("image_key")(image), context("image_value")(image))
        if self.learnable_image_scale:
            alpha = self.weight("alpha", zeros, (), ())
            from_image *= jnp.tanh(alpha) + 1
        return _merge_heads(x.shape[-1])(from_text + from_image)


class FeedForward(Module):
    """GEGLU feed-forward of four times the width (arXiv 2002.05202): value * GELU(gate)."""

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        # Value and gate have a separate axis, so that splitting "mlp" splits both alike.
        y = Linear((2, 4 * width), ("embed", None, "mlp"), name="in")(x)
        y = y[..., 0, :] * jax.nn.gelu(y[..., 1, :], approximate=False)
        return Linear((width,), ("mlp", "embed"), name="out")(y)


class SpatialTransformer(Module):
    """Within each frame: self-attention, attention to text and image, feed-forward."""

    heads: int
    head_width: int
    learnable_image_scale: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        x = constrain(x.reshape(b, t, h * w, c), WITHIN_FRAMES)
        sizes = (self.heads, self.head_width)
        inner = self.heads * self.head_width
        y = GroupNorm(1e-6, name="norm")(x.reshape(b, t, h, w, c))
        y = Linear((inner,), ("embed", "inner"), name="proj_in")(y)
        y = y.reshape(b, t, h * w, inner)

        attend = functools.partial(self.common.attention, names=("batch", "frames"))
        y += SelfAttention(*sizes, name="attn1")(LayerNorm(name="norm1")(y), attend)
        cross = DualCrossAttention(*sizes, self.learnable_image_scale, name="attn2")
        y += cross(LayerNorm(name="norm2")(y), text, image)
        y += FeedForward(name="ff")(LayerNorm(name="norm3")(y))

        x += Linear((c,), ("inner", "embed"), zero=True, name="proj_out")(y)
        return x.reshape(b, t, h, w, c)


class TemporalTransformer(Module):
    """At each pixel, along time: self-attention twice, feed-forward. No positions, no mask."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        x = exchange(x.reshape(b, t, h * w, c), WITHIN_FRAMES, ALONG_TIME)
        inner = self.heads * self.head_width
        y = Linear((inner,), ("embed", "inner"), name="proj_in")(GroupNorm(1e-6, name="norm")(x))
        for i in (1, 2):
            attention = SelfAttention(self.heads, self.head_width, name=f"attn{i}")
            y += attention(LayerNorm(name=f"norm{i}")(y), self.common.temporal_attention)
        y += FeedForward(name="ff")(LayerNorm(name="norm3")(y))
        x += Linear((c,), ("inner", "embed"), zero=True, name="proj_out")(y)
        return exchange(x, ALONG_TIME, WITHIN_FRAMES).reshape(b, t, h, w, c)


def _heads(heads: int, width: int, name: str, axis: str = "embed") -> Linear:
    """Returns the projection `name` from width `axis` to heads."""
    return Linear((heads, width), (axis, "heads", "head_width"), use_bias=False, name=name)


def _merge_heads(width: int) -> Linear:
    """Returns the projection from heads back to `width`."""
    return Linear((width,), ("heads", "head_width", "embed"), num_inputs=2, name="out")
