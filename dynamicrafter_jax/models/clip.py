"""OpenCLIP's text and vision towers, as DynamiCrafter reads them, and the 224x224 preprocessing.

Both stop short of the joint embedding: the text tower returns the state of every token after
its second to last block, and the vision tower every token of its last block (arXiv 2103.00020,
weights of OpenCLIP ViT-H/14).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamicrafter_jax.models.layers import Conv, LayerNorm, Linear, Module

# Mean and standard deviation of CLIP's training pixels in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class TextEncoder(Module):
    """Causal transformer over token ids; its last block is not run ("penultimate").

    Attributes:
        width: Width of a token.
        layers: Number of blocks in the published tower; the last one is not built.
        heads: Number of attention heads.
        context_length: Number of tokens in a text.
        vocab_size: Number of token ids.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    context_length: int = 77
    vocab_size: int = 49408

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns the normalised states of all tokens."""
        embedding = self.parameter(
            "token_embedding",
            nn.initializers.normal(0.02),
            (self.vocab_size, self.width),
            ("vocab", "embed"),
        )
        positions = self.parameter(
            "positional_embedding",
            nn.initializers.normal(0.01),
            (self.context_length, self.width),
            ("tokens", "embed"),
        )
        x = (embedding[ids] + positions[None]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((self.context_length, self.context_length), bool))
        for i in range(self.layers - 1):
            x = Block(self.heads, name=f"block_{i}")(x, causal)
        return LayerNorm(name="ln_final")(x)


class ImageEncoder(Module):
    """Vision transformer without its last norm and projection: all tokens, class token first.

    Attributes:
        width: Width of a token.
        layers: Number of blocks, all of which run.
        head_width: Width of an attention head.
        patch_size: Side of a patch in pixels.
        image_size: Side of the square input in pixels.
    """

    width: int = 1280
    layers: int = 32
    head_width: int = 80
    patch_size: int = 14
    image_size: int = 224

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Returns 1 + (image_size / patch_size)^2 tokens for a picture from `preprocess`."""
        b, d = image.shape[0], self.width
        tokens = 1 + (self.image_size // self.patch_size) ** 2
        scaled_normal = nn.initializers.normal(d**-0.5)
        class_embedding = self.parameter("class_embedding", scaled_normal, (d,), ("embed",))
        positions = self.parameter(
            "positional_embedding", scaled_normal, (tokens, d), ("tokens", "embed")
        )
        x = Conv(
            d,
            self.patch_size,
            stride=self.patch_size,
            padding=(0, 0),
            use_bias=False,
            leading=("batch",),
            name="patch_embed",
        )(image)
        x = x.reshape(b, tokens - 1, d)
        first = jnp.broadcast_to(class_embedding.astype(self.dtype)[None, None], (b, 1, d))
        x = jnp.concatenate([first, x], axis=1) + positions.astype(self.dtype)[None]
        x = LayerNorm(name="ln_pre")(x)
        for i in range(self.layers):
            x = Block(d // self.head_width, name=f"block_{i}")(x)
        return x


class Block(Module):
    """Pre-norm transformer block: attention with biases, then an exact-GELU perceptron."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "l l"] | None = None
    ) -> Float[Array, "b l d"]:
        d = x.shape[-1]
        heads, names = (self.heads, d // self.heads), ("heads", "head_width")
        y = LayerNorm(name="ln_1")(x)
        qkv = Linear((3, *heads), ("embed", None, *names), name="qkv")(y)
        y = self.common.attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask)
        x += Linear((d,), (*names, "embed"), num_inputs=2, name="out")(y)

        y = LayerNorm(name="ln_2")(x)
        y = Linear((4 * d,), ("embed", "mlp"), name="mlp_in")(y)
        y = jax.nn.gelu(y, approximate=False)
        return x + Linear((d,), ("mlp", "embed"), name="mlp_out")(y)


def preprocess(
    image: Float[Array, "b h w 3"], size: int = 224
) -> Float[Array, "b {size} {size} 3"]:
    """Makes the vision tower's input from a picture of any size.

    Blurs axes that shrink, resizes bicubically with aligned corners, and normalises. Both linear
    steps are combined in one matrix per axis, computed on the host in float64.

    Args:
        image: Pictures in [-1, 1].
        size: Side of the square result.
    """
    h, w = image.shape[1:3]
    antialias = max(h, w) > size
    rows = jnp.asarray(_resize_matrix(h, size, antialias), jnp.float32)
    columns = jnp.asarray(_resize_matrix(w, size, antialias), jnp.float32)
    resized = jnp.einsum(
        "yh,bhwc,xw->byxc", rows, image.astype(jnp.float32), columns, precision="highest"
    )
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    return ((resized + 1) / 2 - mean) / std


@functools.cache
def _resize_matrix(length: int, size: int, antialias: bool) -> np.ndarray:
    """Returns the (size, length) matrix of blur and bicubic resize along one axis."""
    matrix = _bicubic_matrix(length, size)
    if antialias:
        matrix = matrix @ _blur_matrix(length, length / size)
    return matrix


def _bicubic_matrix(length: int, size: int) -> np.ndarray:
    """Returns a cubic convolution (a = -0.75) that maps corners to corners and repeats edges."""
    a = -0.75
    position = np.arange(size) * (length - 1) / (size - 1)
    start = np.floor(position).astype(int)
    matrix = np.zeros((size, length))
    for tap in range(-1, 3):
        x = np.abs(position - start - tap)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(matrix, (np.arange(size), np.clip(start + tap, 0, length - 1)), weight)
    return matrix


def _blur_matrix(length: int, factor: float) -> np.ndarray:
    """Returns a Gaussian blur for shrinking by `factor`, with borders reflected."""
    sigma = max((factor - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    taps += 1 - taps % 2
    offset = np.arange(taps) - taps // 2
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    weight /= weight.sum()
    # Reflection without repeating the border, for kernels of any width.
    index = np.arange(length)[:, None] + offset[None]
    period = max(2 * (length - 1), 1)
    index = np.abs((index + length - 1) % period - (length - 1))
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], index), weight[None])
    return matrix
