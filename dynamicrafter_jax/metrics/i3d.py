"""I3D, the network whose features define FVD and KVD (arXiv 1705.07750, 1812.01717).

It is the RGB network for Kinetics-400, whose 400 logits, averaged over time, are the features.
Blocks are named as in the TensorFlow original; `capture_intermediates` gives their outputs.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.layers import Module, ones, zeros

# The side of the square frames and the epsilon of all norms that the network was trained with.
FRAME_SIZE = 224
EPSILON = 1e-3

# Halved three times, these are two, the width of the average pool.
MIN_FRAMES = 9


def i3d_features(
    params: PyTree, frames: UInt8[Array, "b t h w 3"], *, half_pixel_centers: bool = True
) -> Float[Array, "b 400"]:
    """Returns the features of clips of any size.

    Args:
        params: From `i3d_weights.load_i3d`.
        frames: At least 9 frames per clip.
        half_pixel_centers: See `preprocess`.
    """
    features: Any = I3D().apply({"params": params}, preprocess(frames, half_pixel_centers))
    return features


def preprocess(
    frames: UInt8[Array, "b t h w 3"], half_pixel_centers: bool = True, size: int = FRAME_SIZE
) -> Float[Array, "b t {size} {size} 3"]:
    """Resizes frames to squares, bilinearly without antialiasing, and scales them to [-1, 1].

    The aspect ratio is not kept. Implementations of FVD agree on this, but not on where pixels are.
    Those in PyTorch (`interpolate` with `align_corners=False`) resize about pixel centres, which
    are half a pixel inside the picture at its corners. The TensorFlow 1 implementation by the
    authors of FVD (`resize_bilinear`) places pixel i of the result at i times the scale, which
    shifts the picture by up to half a pixel. The default is the former, which is more common today.

    Args:
        frames: Clips.
        half_pixel_centers: False to place pixels as TensorFlow 1 does.
        size: Side of the square result.
    """
    x = _resize(frames, 2, size, half_pixel_centers)
    return _resize(x, 3, size, half_pixel_centers) / 127.5 - 1


def _resize(x: Array, axis: int, size: int, half_pixel_centers: bool) -> Array:
    """Interpolates linearly along an axis."""
    length = x.shape[axis]
    scale = float(np.float32(length) / np.float32(size))  # as PyTorch rounds it
    half = 0.5 if half_pixel_centers else 0.0
    position = np.maximum(scale * (np.arange(size) + half) - half, 0).astype(np.float32)
    before = np.minimum(position.astype(np.int32), length - 1)
    after = np.minimum(before + 1, length - 1)
    weight = (position - before).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    weight = jnp.asarray(np.broadcast_to(weight, (1,) * axis + weight.shape))
    first, second = (jnp.take(x, i, axis).astype(jnp.float32) for i in (before, after))
    return first * (1 - weight) + second * weight


class I3D(Module):
    """Inflated Inception v1 for RGB clips, for inference.

    Attributes:
        num_classes: Width of the logits.
        frame_size: Side of the square frames. Trained weights are for 224.
    """

    num_classes: int = 400
    frame_size: int = FRAME_SIZE

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b d"]:
        """Returns the logits of clips in [-1, 1], averaged over time.

        Raises:
            ValueError: The frames are not of this size.
            UserError: A clip has fewer than 9 frames.
        """
        _, t, h, w, _ = video.shape
        if (h, w) != (self.frame_size, self.frame_size):
            raise ValueError(f"frames of {self.frame_size}x{self.frame_size}, got {h}x{w}")
        if t < MIN_FRAMES:
            raise UserError(f"clips of {t} frames are too short for I3D: give {MIN_FRAMES} or more")

        x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(video.astype(self.dtype))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = Unit(64, 1, name="Conv3d_2b_1x1")(x)
        x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = Mixed((64, 96, 128, 16, 32, 32), name="Mixed_3b")(x)
        x = Mixed((128, 128, 192, 32, 96, 64), name="Mixed_3c")(x)
        x = max_pool(x, (3, 3, 3), (2, 2, 2))
        x = Mixed((192, 96, 208, 16, 48, 64), name="Mixed_4b")(x)
        x = Mixed((160, 112, 224, 24, 64, 64), name="Mixed_4c")(x)
        x = Mixed((128, 128, 256, 24, 64, 64), name="Mixed_4d")(x)
        x = Mixed((112, 144, 288, 32, 64, 64), name="Mixed_4e")(x)
        x = Mixed((256, 160, 320, 32, 128, 128), name="Mixed_4f")(x)
        x = max_pool(x, (2, 2, 2), (2, 2, 2))
        x = Mixed((256, 160, 320, 32, 128, 128), name="Mixed_5b")(x)
        x = Mixed((384, 192, 384, 48, 128, 128), name="Mixed_5c")(x)
        x = x.mean((2, 3), keepdims=True)
        x = (x[:, :-1] + x[:, 1:]) / 2  # the average pool spans two frames
        logits = Unit(self.num_classes, norm=False, name="logits")(x)
        return logits.mean((1, 2, 3))


class Mixed(Module):
    """Four parallel branches.

    Attributes:
        features: Channels of `b0`, of `b1a` and `b1b`, of `b2a` and `b2b`, and of `b3b`.
    """

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """Returns the branches' outputs, concatenated along the channels."""
        b0, b1a, b1b, b2a, b2b, b3b = self.features
        branches = [
            Unit(b0, name="b0")(x),
            Unit(b1b, 3, name="b1b")(Unit(b1a, name="b1a")(x)),
            Unit(b2b, 3, name="b2b")(Unit(b2a, name="b2a")(x)),
            Unit(b3b, name="b3b")(max_pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class Unit(Module):
    """A convolution, then batch normalisation and ReLU; or a convolution with a bias.

    Attributes:
        features: Output channels.
        kernel_size: Side of the cubic kernel.
        stride: Step along frames, height and width.
        norm: Whether to normalise and rectify; otherwise the convolution has a bias.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 d"]:
        """Returns a `stride`-th as many frames, rows and columns."""
        sizes = (self.features, self.kernel_size, self.stride)
        y = Conv3D(*sizes, use_bias=not self.norm, name="conv")(x)
        return jax.nn.relu(BatchNorm(name="norm")(y)) if self.norm else y


class Conv3D(Module):
    """A convolution along frames, height and width, padded as TensorFlow's 'SAME' does.

    The frames that a kernel spans are stacked along the channels, so that a 2-D convolution can do
    the work, which takes CPUs half the time of a 3-D one or less.

    Attributes:
        features: Output channels.
        kernel_size: Side of the cubic kernel.
        stride: Step along frames, height and width.
        use_bias: Whether to add a bias.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 d"]:
        """Returns a `stride`-th as many frames, rows and columns."""
        k, step, c = self.kernel_size, self.stride, x.shape[-1]
        init = nn.initializers.normal(math.sqrt(2 / (k**3 * c)))
        names = (None, None, None, "channels_in", "channels_out")
        kernel = self.weight("kernel", init, (k, k, k, c, self.features), names)
        stacked = _stack_frames(x.astype(self.dtype), k, step)
        y = jax.lax.conv_general_dilated(
            stacked.reshape(-1, *stacked.shape[2:]),
            kernel.transpose(1, 2, 0, 3, 4).reshape(k, k, k * c, self.features),
            (step, step),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(*stacked.shape[:2], *y.shape[1:])
        if self.use_bias:
            bias = self.weight("bias", zeros, (self.features,), ("channels_out",))
            y += bias.reshape(1, 1, 1, 1, -1)
        return y


class BatchNorm(Module):
    """Batch normalisation with running statistics, which are parameters here (arXiv 1502.03167)."""

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Returns `x`, normalised channel by channel."""
        scale, bias, mean, variance = (
            self.parameter(name, init, x.shape[-1:], ("norm",)).astype(jnp.float32)
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        each = (1,) * (x.ndim - 1) + (-1,)
        y = x.astype(jnp.float32) * factor.reshape(each) + (bias - mean * factor).reshape(each)
        return y.astype(self.dtype)


def max_pool(
    x: Float[Array, "b t h w c"], window: tuple[int, int, int], stride: tuple[int, int, int]
) -> Float[Array, "b t2 h2 w2 c"]:
    """Max-pools frames, height and width, padded as TensorFlow's 'SAME' does.

    Axes are pooled one after another, which is many times as fast on CPUs as all three at once.
    """
    for axis in range(3):
        size, step = (
            tuple(n if i == axis else 1 for i, n in enumerate(along)) for along in (window, stride)
        )
        x = nn.max_pool(x, size, step, "SAME")
    return x


def _stack_frames(x: Float[Array, "b t h w c"], span: int, stride: int) -> Array:
    """Stacks the `span` frames of each window along the channels."""
    length = x.shape[1]
    windows = -(-length // stride)
    reach = (windows - 1) * stride
    missing = max(reach + span - length, 0)  # if odd, the larger half goes to the end
    padding = [(0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0), (0, 0)]
    padded = jnp.pad(x, padding)
    return jnp.concatenate(
        [padded[:, start : start + reach + 1 : stride] for start in range(span)], axis=-1
    )
