"""The blocks that the U-Net is made of, and dropout."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dynamicrafter_jax.models.layers import (
    Conv,
    GroupNorm,
    Linear,
    Module,
    TemporalConv,
    upsample_nearest,
)
from dynamicrafter_jax.models.partitioning import ALONG_TIME, WITHIN_FRAMES, exchange
from dynamicrafter_jax.models.transformers import SpatialTransformer, TemporalTransformer


class UNetBlock(Module):
    """Res-block, then optional transformers, a second res-block and upsampling.

    Attributes:
        channels: Width of the output.
        attends: Whether a spatial and a temporal transformer follow the res-block.
        res_after: Whether a second res-block follows (in the middle block).
        upsample: Whether the block ends by doubling height and width.
    """

    channels: int
    attends: bool
    res_after: bool = False
    upsample: bool = False
    num_head_channels: int = 64
    dropout: float = 0.0
    learnable_image_scale: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        emb: Float[Array, "b e"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t h2 w2 c2"]:
        heads = (self.channels // self.num_head_channels, self.num_head_channels)
        x = ResBlock(self.channels, self.dropout, name="res")(x, emb, dropout_keys)
        if self.attends:
            spatial = SpatialTransformer(*heads, self.learnable_image_scale, name="spatial")
            x = spatial(x, text, image)
            x = TemporalTransformer(*heads, name="temporal")(x)
        if self.res_after:
            x = ResBlock(self.channels, self.dropout, name="res_after")(x, emb, dropout_keys)
        if self.upsample:
            x = Conv(self.channels, name="upsample")(upsample_nearest(x))
        return x


class Downsample(Module):
    """Halves height and width by a strided convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
        return Conv(x.shape[-1], stride=2, name="downsample")(x)


class ResBlock(Module):
    """Two convolutions within each frame, shifted by the embedding, then the temporal block."""

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        emb: Float[Array, "b e"],
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t h w c2"]:
        y = Conv(self.channels, name="conv1")(jax.nn.silu(GroupNorm(name="norm1")(x)))
        shift = Linear((self.channels,), ("embed", "channels_out"), name="emb")(emb)
        y += shift[:, None, None, None]
        y = jax.nn.silu(GroupNorm(name="norm2")(y))
        y = Dropout(self.dropout, name="dropout")(y, dropout_keys)
        y = Conv(self.channels, zero=True, name="conv2")(y)
        if x.shape[-1] != self.channels:
            names = ("channels_in", "channels_out")
            x = Linear((self.channels,), names, name="skip")(x)
        return TemporalBlock(self.dropout, name="temporal_conv")(x + y, dropout_keys)


class TemporalBlock(Module):
    """Four convolutions along time, added to the input; the last starts at zero."""

    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        x = y = exchange(x.reshape(b, t, h * w, c), WITHIN_FRAMES, ALONG_TIME)
        for i in range(1, 5):
            y = jax.nn.silu(GroupNorm(name=f"norm{i}")(y))
            if i > 1:
                y = Dropout(self.dropout, name=f"dropout{i}")(y, dropout_keys)
            y = TemporalConv(c, zero=i == 4, name=f"conv{i}")(y)
        return exchange(x + y, ALONG_TIME, WITHIN_FRAMES).reshape(b, t, h, w, c)


class Dropout(Module):
    """Zeroes elements at random and scales up the rest, with a separate key for each sample.

    A sample's mask is the same in any batch and on any mesh. Sixteen random bits decide on each
    element, so the rate is a multiple of 2^-16.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *shape"], keys: Key[Array, " b"] | None
    ) -> Float[Array, "b *shape"]:
        """Returns `x` with elements dropped, or unchanged if there are no keys."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        dropped = round(self.rate * 2**16)

        def kept(key: Array) -> Array:
            bits = jax.random.bits(jax.random.fold_in(key, layer), x.shape[1:], jnp.uint16)
            return bits >= dropped

        scaled = x * jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
        return jnp.where(jax.vmap(kept)(keys), scaled, jnp.zeros_like(x))
