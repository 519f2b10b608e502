"""The vision transformers behind measures, which use their class tokens (arXiv 2010.11929).

DINO's (arXiv 2104.14294) returns the class token of the last block as it is. CLIP's (arXiv
2103.00020) normalises all tokens before the first block and the class token after the last, and
projects the latter to the joint embedding.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamicrafter_jax.models.attention import plain_attention
from dynamicrafter_jax.models.layers import Conv, LayerNorm, Linear, Module

Activation = Callable[[Array], Array]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """OpenAI's approximation of the GELU, with which their CLIP was trained."""
    return x * jax.nn.sigmoid(1.702 * x)


class VisionTransformer(Module):
    """Vision transformer with one output vector per picture.

    Attributes:
        embedding: Width of the joint embedding of CLIP; None for DINO.
        activation: Activation of the perceptrons.
        epsilon: Epsilon of all norms.
        width: Width of a token.
        layers: Number of blocks.
        heads: Number of attention heads.
        patch_size: Side of a patch in pixels.
        image_size: Side of the square input in pixels.
    """

    embedding: int | None = None
    activation: Activation = gelu
    epsilon: float = 1e-5
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch_size: int = 16
    image_size: int = 224

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns the class token or the embedding of normalised pictures."""
        x = self._tokens(image)
        if self.embedding is not None:
            x = LayerNorm(self.epsilon, name="ln_pre")(x)
        for i in range(self.layers):
            # Only the first token of the last block is used.
            queries = 1 if i == self.layers - 1 else None
            block = Block(self.heads, self.activation, self.epsilon, queries, name=f"block_{i}")
            x = block(x)
        x = x[:, 0]
        if self.embedding is None:
            return x
        x = LayerNorm(self.epsilon, name="ln_post")(x)
        init = nn.initializers.normal(self.width**-0.5)
        shape = (self.width, self.embedding)
        return x @ self.weight("projection", init, shape, ("embed", None))

    def _tokens(self, image: Array) -> Array:
        """Returns the class token and the patches, with positions added."""
        b, d, k = image.shape[0], self.width, self.patch_size
        tokens = 1 + (self.image_size // k) ** 2
        init = nn.initializers.normal(0.02)
        first = self.parameter("class_embedding", init, (d,), ("embed",)).astype(self.dtype)
        positions = self.parameter(
            "positional_embedding", init, (tokens, d), ("tokens", "embed")
        ).astype(self.dtype)
        patches = Conv(d, k, k, (0, 0), leading=("batch",), name="patch_embed")(image)
        patches = patches.reshape(b, tokens - 1, d)
        first = jnp.broadcast_to(first[None, None], (b, 1, d))
        return jnp.concatenate([first, patches], axis=1) + positions[None]


class Block(Module):
    """Pre-norm transformer block: attention with biases, then a perceptron.

    Attributes:
        heads: Attention heads.
        activation: Activation of the perceptron.
        epsilon: Epsilon of both norms.
        queries: How many tokens to return, from the first; None for all.
    """

    heads: int
    activation: Activation = gelu
    epsilon: float = 1e-5
    queries: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b m d"]:
        """Returns the first `queries` tokens, transformed."""
        d = x.shape[-1]
        head = (self.heads, d // self.heads)
        y = LayerNorm(self.epsilon, name="ln_1")(x)
        names = ("embed", None, "heads", "head_width")
        qkv = Linear((3, *head), names, name="qkv")(y)
        query, key, value = (qkv[:, :, i] for i in range(3))
        y = plain_attention(query[:, : self.queries], key, value)
        names = ("heads", "head_width", "embed")
        y = Linear((d,), names, num_inputs=2, name="out")(y)
        x = x[:, : self.queries] + y

        y = LayerNorm(self.epsilon, name="ln_2")(x)
        y = self.activation(Linear((4 * d,), ("embed", "mlp"), name="mlp_in")(y))
        return x + Linear((d,), ("mlp", "embed"), name="mlp_out")(y)
