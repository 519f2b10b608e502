"""The KL-regularised autoencoder between pixels and latents (arXiv 2112.10752)."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamicrafter_jax.models.layers import Conv, GroupNorm, Linear, Module, upsample_nearest
from dynamicrafter_jax.models.partitioning import Names

# The VAE sees one frame at a time, so frames may be spread over all devices.
FRAMES: Names = ("frames_everywhere",)

# A fresh VAE can learn only if images pass through its twenty or so layers, so these initially keep
# the variance, and residual branches start at zero.
_Conv = functools.partial(Conv, leading=FRAMES, steady=True)
_Linear = functools.partial(Linear, steady=True)
_GroupNorm = functools.partial(GroupNorm, 1e-6)


class Posterior(NamedTuple):
    """A diagonal Gaussian over unscaled latents; `logvar` is clipped to [-30, 20]."""

    mean: Float[Array, "... h w z"]
    logvar: Float[Array, "... h w z"]

    def sample(self, noise: Float[Array, "... h w z"]) -> Float[Array, "... h w z"]:
        """Returns mean + exp(logvar / 2) noise, for standard normal `noise`."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Autoencoder(Module):
    """Encoder and decoder of single frames.

    Attributes:
        ch: Width of the first level.
        ch_mult: Width of each level, as a multiple of `ch`.
        num_res_blocks: Res-blocks per level in the encoder; one more in the decoder.
        z_channels: Channels of a latent.
        scale_factor: Factor on latents before the U-Net sees them.
        norm_groups: Groups of channels that are normalised together.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    scale_factor: float = 0.18215
    norm_groups: int = 32

    def __post_init__(self) -> None:
        """Makes every norm inside use `norm_groups`."""
        super().__post_init__()
        self.share(norm_groups=self.norm_groups)

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** (len(self.ch_mult) - 1)

    def setup(self) -> None:
        names = ("channels_in", "channels_out")
        sizes = (self.ch, self.ch_mult)
        self.encoder = Encoder(*sizes, self.num_res_blocks, self.z_channels)
        self.decoder = Decoder(*sizes, self.num_res_blocks + 1)
        self.quant = _Linear((2 * self.z_channels,), names)
        self.post_quant = _Linear((self.z_channels,), names)

    def moments(self, image: Float[Array, "n h w 3"]) -> Float[Array, "n h2 w2 moments"]:
        """Returns the posterior's mean and log-variance, unscaled, on the channel axis."""
        return self.quant(self.encoder(image))

    def encode(self, image: Float[Array, "n h w 3"]) -> Posterior:
        """Returns the posterior over an image's unscaled latents, float32; pixels in [-1, 1]."""
        mean, logvar = jnp.split(self.moments(image).astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: Float[Array, "n h w z"]) -> Float[Array, "n h2 w2 3"]:
        """Returns the image for unscaled latents, roughly in [-1, 1] but not clipped."""
        return self.decoder(self.post_quant(z))

    def __call__(self, image: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
        """Reconstructs an image through the posterior's mean; touches every parameter."""
        return self.decode(self.encode(image).mean)


class Encoder(Module):
    """Image to (mean, log-variance) before `quant`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n h2 w2 d"]:
        x = _Conv(self.ch, name="conv_in")(x)
        for level, multiplier in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                x = ResBlock(multiplier * self.ch, name=f"down_{level}_block_{i}")(x)
            if level != len(self.ch_mult) - 1:
                name = f"down_{level}_downsample"
                x = _Conv(x.shape[-1], stride=2, padding=(0, 1), name=name)(x)
        x = Middle(name="mid")(x)
        x = jax.nn.silu(_GroupNorm(name="norm_out")(x))
        return _Conv(2 * self.z_channels, name="conv_out")(x)


class Decoder(Module):
    """Latent after `post_quant` to image. Levels are numbered as in the encoder."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int

    @nn.compact
    def __call__(self, z: Float[Array, "n h w z"]) -> Float[Array, "n h2 w2 3"]:
        x = _Conv(self.ch_mult[-1] * self.ch, name="conv_in")(z)
        x = Middle(name="mid")(x)
        for level, multiplier in reversed(list(enumerate(self.ch_mult))):
            for i in range(self.num_res_blocks):
                x = ResBlock(multiplier * self.ch, name=f"up_{level}_block_{i}")(x)
            if level != 0:
                x = _Conv(x.shape[-1], name=f"up_{level}_upsample")(upsample_nearest(x))
        x = jax.nn.silu(_GroupNorm(name="norm_out")(x))
        return _Conv(3, name="conv_out")(x)


class Middle(Module):
    """Res-block, attention over the whole frame, res-block."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        x = ResBlock(x.shape[-1], name="block_1")(x)
        x = FrameAttention(name="attn")(x)
        return ResBlock(x.shape[-1], name="block_2")(x)


class ResBlock(Module):
    """Two normalised convolutions with a residual connection."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        y = _Conv(self.channels, name="conv1")(jax.nn.silu(_GroupNorm(name="norm1")(x)))
        y = jax.nn.silu(_GroupNorm(name="norm2")(y))
        y = _Conv(self.channels, name="conv2", zero=True)(y)
        if x.shape[-1] != self.channels:
            names = ("channels_in", "channels_out")
            x = _Linear((self.channels,), names, name="skip")(x)
        return x + y


class FrameAttention(Module):
    """Single-head self-attention of a frame's pixels, with biases."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        project = functools.partial(_Linear, (c,), ("channels_in", "channels_out"))
        y = _GroupNorm(name="norm")(x).reshape(n, h * w, 1, c)
        query, key, value = (project(name=name)(y) for name in ("query", "key", "value"))
        y = self.common.attention(query, key, value, names=FRAMES)
        return x + project(name="out", zero=True)(y.reshape(x.shape))
