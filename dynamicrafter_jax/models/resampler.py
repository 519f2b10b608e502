"""The query transformer P that projects image tokens into a text-aligned context."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamicrafter_jax.models.layers import LayerNorm, Linear, Module

OTHER_LENGTHS = ("all", "nearest")
"""What a frame reads in a clip that is not `video_length` frames long: all tokens, as in the
release; or the tokens of the frame at the nearest relative position."""


class Projector(Module):
    """Learned queries, `num_queries` for each of `video_length` frames, read the image tokens.

    A perceiver resampler (arXiv 2204.14198) used as in DynamiCrafter, section 3.2.

    Attributes:
        dim: Internal width.
        depth: Number of layers of attention and feed-forward.
        dim_head: Width of a head.
        heads: Number of attention heads.
        num_queries: Number of queries per frame.
        embedding_dim: Width of the image tokens, the input.
        output_dim: Width of the context tokens, the output.
        ff_mult: Width of the feed-forward, as a multiple of `dim`.
        video_length: Number of frames that have their own queries.
        other_lengths: One of `OTHER_LENGTHS`: what the frames of longer and shorter clips read.
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
    other_lengths: str = "all"

    def __post_init__(self) -> None:
        """Refuses an unknown `other_lengths` as soon as the network is made."""
        if self.other_lengths not in OTHER_LENGTHS:
            raise ValueError(
                f"projector.other_lengths is {self.other_lengths!r}: choose from "
                f"{', '.join(OTHER_LENGTHS)}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n e"]) -> Float[Array, "b t q d"]:
        """Returns the context of each of `video_length` frames.

        Args:
            tokens: All tokens of the vision tower.

        Raises:
            ValueError: The tokens are not `embedding_dim` wide.
        """
        if tokens.shape[-1] != self.embedding_dim:
            raise ValueError(
                f"image tokens must be {self.embedding_dim} wide, got {tokens.shape[-1]}"
            )
        b = tokens.shape[0]
        queries = self.video_length * self.num_queries
        latents = self.parameter(
            "latents",
            nn.initializers.normal(self.dim**-0.5),
            (queries, self.dim),
            ("tokens", "embed"),
        )
        x = jnp.broadcast_to(latents.astype(self.dtype)[None], (b, queries, self.dim))
        tokens = Linear((self.dim,), ("context", "embed"), name="proj_in")(tokens)
        for i in range(self.depth):
            x += PerceiverAttention(self.heads, self.dim_head, name=f"attn_{i}")(tokens, x)
            x += FeedForward(self.ff_mult, name=f"ff_{i}")(x)
        x = Linear((self.output_dim,), ("embed", "context"), name="proj_out")(x)
        x = LayerNorm(name="norm_out")(x)
        return x.reshape(b, self.video_length, self.num_queries, self.output_dim)


class PerceiverAttention(Module):
    """Queries attend to the image tokens and to each other."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], queries: Float[Array, "b l d"]
    ) -> Float[Array, "b l d"]:
        tokens = LayerNorm(name="norm1")(tokens)
        queries = LayerNorm(name="norm2")(queries)
        linear = functools.partial(Linear, use_bias=False)
        heads, names = (self.heads, self.head_width), ("heads", "head_width")
        q = linear(heads, ("embed", *names), name="query")(queries)
        both = jnp.concatenate([tokens, queries], axis=1)
        kv = linear((2, *heads), ("embed", None, *names), name="key_value")(both)
        y = self.common.attention(q, kv[:, :, 0], kv[:, :, 1])
        width = queries.shape[-1]
        return linear((width,), (*names, "embed"), num_inputs=2, name="out")(y)


class FeedForward(Module):
    """Norm, then a two-layer perceptron without biases."""

    mult: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        d = x.shape[-1]
        y = LayerNorm(name="norm")(x)
        y = Linear((self.mult * d,), ("embed", "mlp"), use_bias=False, name="in")(y)
        y = jax.nn.gelu(y, approximate=False)
        return Linear((d,), ("mlp", "embed"), use_bias=False, name="out")(y)
