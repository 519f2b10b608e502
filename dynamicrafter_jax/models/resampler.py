"""The query transformer P that projects image tokens into a text-aligned context."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dynamicrafter_jax.models.attention import AttentionFn, plain_attention
from dynamicrafter_jax.models.layers import LayerNorm, Linear, declare


class Projector(nn.Module):
    """Learned queries, `num_queries` for each of `video_length` frames, read the image tokens.

    A perceiver resampler (arXiv 2204.14198) used as in DynamiCrafter, section 3.2.

    Attributes:
      dim: Width inside.
      depth: Layers of attention and feed-forward.
      dim_head: Width of a head.
      heads: Attention heads.
      num_queries: Queries of one frame.
      embedding_dim: Width of the image tokens read.
      output_dim: Width of the context tokens written.
      ff_mult: Width of the feed-forward, as a multiple of `dim`.
      video_length: Frames that have queries of their own.
      attention: The attention kernel.
      dtype: Type computed in.
      param_dtype: Type of the parameters.
    """

    dim: int = 1024
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    num_queries: int = 16
    embedding_dim: int = 1280
    output_dim: int = 1024
    ff_mult: int = 4
    video_length: int = 16
    attention: AttentionFn = plain_attention
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n e"]) -> Float[Array, "b t q d"]:
        """Returns the context of each of `video_length` frames.

        Args:
          tokens: All tokens of the vision tower.

        Raises:
          ValueError: If the tokens are not `embedding_dim` wide.
        """
        if tokens.shape[-1] != self.embedding_dim:
            raise ValueError(
                f"image tokens must be {self.embedding_dim} wide, got {tokens.shape[-1]}"
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b = tokens.shape[0]
        queries = self.video_length * self.num_queries
        latents = self.param(
            "latents",
            declare(nn.initializers.normal(self.dim**-0.5), ("tokens", "embed")),
            (queries, self.dim),
            self.param_dtype,
        )
        x = jnp.broadcast_to(jnp.asarray(latents, self.dtype)[None], (b, queries, self.dim))
        tokens = Linear((self.dim,), ("context", "embed"), name="proj_in", **types)(tokens)
        for i in range(self.depth):
            x += PerceiverAttention(
                self.heads, self.dim_head, self.attention, name=f"attn_{i}", **types
            )(tokens, x)
            x += FeedForward(self.ff_mult, name=f"ff_{i}", **types)(x)
        x = Linear((self.output_dim,), ("embed", "context"), name="proj_out", **types)(x)
        x = LayerNorm(name="norm_out", **types)(x)
        return x.reshape(b, self.video_length, self.num_queries, self.output_dim)


class PerceiverAttention(nn.Module):
    """Queries attend to the image tokens and to each other."""

    heads: int
    head_width: int
    attention: AttentionFn = plain_attention
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], queries: Float[Array, "b l d"]
    ) -> Float[Array, "b l d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = (self.heads, self.head_width)
        tokens = LayerNorm(name="norm1", **types)(tokens)
        queries = LayerNorm(name="norm2", **types)(queries)
        q = Linear(
            heads, ("embed", "heads", "head_width"), use_bias=False, name="query", **types
        )(queries)
        kv = Linear(
            (2, *heads),
            ("embed", None, "heads", "head_width"),
            use_bias=False,
            name="key_value",
            **types,
        )(jnp.concatenate([tokens, queries], axis=1))
        y = self.attention(q, kv[:, :, 0], kv[:, :, 1])
        return Linear(
            (queries.shape[-1],),
            ("heads", "head_width", "embed"),
            num_inputs=2,
            use_bias=False,
            name="out",
            **types,
        )(y)


class FeedForward(nn.Module):
    """Norm, then a two-layer perceptron without biases."""

    mult: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        d = x.shape[-1]
        y = LayerNorm(name="norm", **types)(x)
        y = Linear((self.mult * d,), ("embed", "mlp"), use_bias=False, name="in", **types)(y)
        y = jax.nn.gelu(y, approximate=False)
        return Linear((d,), ("mlp", "embed"), use_bias=False, name="out", **types)(y)
