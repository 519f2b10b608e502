"""Small parts shared by every model: parameters with logical axes, linear maps, norms.

All modules are channels-last and accept any leading axes.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, PyTree

from dynamicrafter_jax.models.attention import (
    AttentionFn,
    TemporalAttentionFn,
    plain_attention,
    plain_temporal_attention,
)
from dynamicrafter_jax.models.partitioning import Names, constrain, may_split, on_each_device

Initializer = Callable[[jax.Array, Sequence[int], DTypeLike], Array]

# Numbers of elements that `init_params` draws.
_COMMON_LENGTHS = (2**12, 2**14, 2**16, 2**18, 2**20)


class Parameter(nn.LogicallyPartitioned):
    """A parameter boxed with its logical axis names and its own initializer.

    Carrying the initializer lets `init_params` draw one leaf of the abstract tree at a time, each
    where it will live, instead of compiling one program for a thousand leaves.

    Attributes:
        initializer: Function that draws it.
        adapter: Whether it is a parameter that no release has. It is then drawn when a release file
            is read, and left out when one is written; converted models and training runs keep it.
    """

    initializer: Initializer | None = struct.field(default=None, pytree_node=False)
    adapter: bool = struct.field(default=False, pytree_node=False)

    def unbox(self, apply_constraint: bool = True) -> Any:
        """Returns the value without a sharding constraint: its owner decides where it lives."""
        return self.value


def abstract_params(module: nn.Module, *inputs: Any, **kwargs: Any) -> PyTree:
    """Returns the boxed tree of a module's parameters, as shapes, without computing anything.

    Args:
        module: Any model of this package.
        *inputs: Its inputs, as arrays or `jax.ShapeDtypeStruct`.
        **kwargs: Static keyword arguments of `module.init`, such as `method`.
    """
    init = functools.partial(module.init, **kwargs)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def init_params(boxed: PyTree, key: jax.Array) -> PyTree[Array]:
    """Draws every leaf of an abstract tree from its own initializer.

    Each key is `key` folded with a hash of the leaf's path, so that a leaf's value does not
    depend on which other leaves exist.

    Args:
            boxed: The result of `abstract_params`.
            key: A typed PRNG key.

    Returns:
            The same tree, unboxed, with arrays for leaves.
    """

    def draw(path: tuple, box: Parameter) -> Array:
        leaf_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        shape, dtype = box.value.shape, box.value.dtype
        size = math.prod(shape)
        # Our initializers draw elements independently, so a leaf is the beginning of a longer draw:
        # a few common lengths compile in a second, hundreds of shapes in a minute.
        length = next((common for common in _COMMON_LENGTHS if size <= common), size)
        assert box.initializer is not None
        flat = np.asarray(box.initializer(leaf_key, (length,), dtype))
        return jnp.asarray(flat[:size].reshape(shape))

    return jax.tree_util.tree_map_with_path(
        draw, boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter)
    )


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of the release's linear and conv layers."""
    return functools.partial(_uniform, 1.0 / math.sqrt(fan_in))


zeros: Initializer = nn.initializers.zeros
ones: Initializer = nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class Common:
    """What all layers of a network have in common.

    Attributes:
        dtype: Type of computations; statistics of norms are always float32.
        param_dtype: Type of the parameters.
        attention: The kernel for all attention except along time.
        temporal_attention: The kernel for attention along time.
        norm_groups: Groups of channels that `GroupNorm` normalises together.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attention: AttentionFn = plain_attention
    temporal_attention: TemporalAttentionFn = plain_temporal_attention
    norm_groups: int = 32


# The value in modules that were given nothing, to distinguish them from those given defaults.
_NOT_GIVEN = Common()


class Module(nn.Module, kw_only=True):
    """The base class of all networks and layers.

    Attributes:
        common: What the layers have in common. A layer made inside another one inherits it,
            unless it is given its own.
    """

    common: Common = _NOT_GIVEN

    def __post_init__(self) -> None:
        """Inherits `common` from the module that this one is made in."""
        super().__post_init__()
        if self.common is _NOT_GIVEN and isinstance(self.parent, Module):
            object.__setattr__(self, "common", self.parent.common)

    def share(self, **changes: Any) -> None:
        """Replaces fields of `common`, for this module and the layers made inside it."""
        object.__setattr__(self, "common", dataclasses.replace(self.common, **changes))

    @property
    def dtype(self) -> DTypeLike:
        """Type of computations."""
        return self.common.dtype

    def parameter(
        self,
        name: str,
        initializer: Initializer,
        shape: tuple[int, ...],
        names: Names,
        adapter: bool = False,
    ) -> Any:
        """Declares a parameter with its logical axes, and returns its value as stored.

        The value is an array, or the pytree that replaces it in the given parameters. An `adapter`
        is a parameter that no release has; see `Parameter`.
        """
        if self.has_variable("params", name):
            # `param` would trace the initializer for its shape: half the time of a forward trace.
            value = nn.unbox(self.get_variable("params", name))
            if (given := jnp.shape(jax.tree.leaves(value)[0])) != shape:
                raise flax.errors.ScopeParamShapeError(name, "/".join(self.path), given, shape)
            return value
        box = functools.partial(_boxed, initializer, names, adapter)
        return self.param(name, box, shape, self.common.param_dtype)

    def weight(
        self,
        name: str,
        initializer: Initializer,
        shape: tuple[int, ...],
        names: Names,
        adapter: bool = False,
    ) -> Array:
        """Declares a parameter and returns it in the type of computations, split only by its names.

        If a parameter is stored in more parts than that, they are gathered here, in the smaller
        type, and their gradient is scattered. If it is not stored as an array, but for example as
        8-bit values and scales, its `astype` makes the array.
        """
        value = self.parameter(name, initializer, shape, names, adapter)
        return constrain(value.astype(self.dtype), names)


class Linear(Module):
    """A linear map of the last `num_inputs` axes to `features`.

    Attributes:
        features: Sizes of the output axes; several axes keep heads (or fused projections) apart.
        names: Logical names of the kernel's axes, inputs first.
        num_inputs: How many trailing axes of the input are contracted.
        use_bias: Whether to add a bias.
        zero: Whether kernel and bias start at zero.
        steady: Whether the kernel initially keeps the variance and the bias starts at zero; by
            default they start as in PyTorch, which keeps a third of the variance.
    """

    features: tuple[int, ...]
    names: Names
    num_inputs: int = 1
    use_bias: bool = True
    zero: bool = False
    steady: bool = False

    @nn.compact
    def __call__(self, x: Num[Array, "..."]) -> Num[Array, "..."]:
        n = self.num_inputs
        inputs = x.shape[x.ndim - n :]
        init, bias_init = _fresh(math.prod(inputs), self.zero, self.steady)
        shape = (*inputs, *self.features)
        kernel = self.weight("kernel", init, shape, self.names)
        y = _product(x.astype(self.dtype), kernel, n)
        if self.use_bias:
            bias = self.weight("bias", bias_init, self.features, self.names[n:])
            y += _expand(bias, y.ndim)
        return y


class Conv(Module):
    """A 2-D convolution over `(..., h, w, c)`.

    Attributes:
        features: Output channels.
        kernel_size: Side of the square kernel.
        stride: Step along both axes.
        padding: Zeros before and after each axis; half the kernel by default.
        zero: Whether kernel and bias start at zero.
        leading: Logical names of the axes before the height.
        steady: Whether the kernel initially keeps the variance and the bias starts at zero; by
            default they start as in PyTorch, which keeps a third of the variance.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    use_bias: bool = True
    zero: bool = False
    leading: Names = ("batch", "frames")
    steady: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... h w c"]) -> Float[Array, "... h2 w2 d"]:
        k, channels = self.kernel_size, x.shape[-1]
        init, bias_init = _fresh(k * k * channels, self.zero, self.steady)
        names = (None, None, "channels_in", "channels_out")
        shape = (k, k, channels, self.features)
        kernel = self.weight("kernel", init, shape, names)
        padding = (k // 2, k // 2) if self.padding is None else self.padding

        def convolve(x: Array, kernel: Array) -> Array:
            y = jax.lax.conv_general_dilated(
                x.reshape(-1, *x.shape[-3:]),
                kernel,
                (self.stride, self.stride),
                (padding, padding),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return y.reshape(*x.shape[:-3], *y.shape[1:])

        y = on_each_device(convolve, x.astype(self.dtype), kernel, names=self.leading)
        if self.use_bias:
            bias = self.weight("bias", bias_init, (self.features,), ("channels_out",))
            y += _expand(bias, y.ndim)
        return y


class TemporalConv(Module):
    """A zero-padded convolution over three frames along `t`: the release's (3, 1, 1) kernel.

    It is computed as three matrix products of shifted frames, which every backend runs at full
    speed, while 3-D convolutions with unit sides are often slow.
    """

    features: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t n c"]) -> Float[Array, "b t n d"]:
        taps, channels, frames = 3, x.shape[-1], x.shape[1]
        init = zeros if self.zero else uniform_fan_in(taps * channels)
        names = (None, "channels_in", "channels_out")
        shape = (taps, channels, self.features)
        kernel = self.weight("kernel", init, shape, names)
        bias = self.weight("bias", init, (self.features,), ("channels_out",))
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0), (0, 0)))
        y = sum(_product(padded[:, i : i + frames], tap) for i, tap in enumerate(kernel))
        return y + _expand(bias, x.ndim)


class GroupNorm(Module):
    """Group normalisation over the two axes before the channels.

    These axes are height and width of a frame, or frames and pixels of a clip. Pixels are summed
    channel by channel, and only the sums are grouped, since accelerators are slow at splitting the
    channels of every pixel into groups.

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "... m n c"]) -> Float[Array, "... m n c"]:
        scale, bias = _scale_and_bias(self, x.shape[-1])
        centred = x.astype(jnp.float32)
        centred -= self._group_mean(centred)
        factor = jax.lax.rsqrt(self._group_mean(jnp.square(centred)) + self.epsilon)
        y = centred * (factor * _expand(scale, x.ndim)) + _expand(bias, x.ndim)
        return y.astype(self.dtype)

    def _group_mean(self, x: Float[Array, "... m n c"]) -> Float[Array, "... 1 1 c"]:
        """Returns, for each channel, the mean over its group."""
        means = x.mean((-3, -2), keepdims=True)
        grouped = means.reshape(*means.shape[:-1], self.common.norm_groups, -1)
        return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(means.shape)


class LayerNorm(Module):
    """Layer normalisation over the last axis (arXiv 1607.06450)."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale, bias = _scale_and_bias(self, x.shape[-1])
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * _expand(scale, x.ndim) + _expand(bias, x.ndim)).astype(self.dtype)


def upsample_nearest(x: Float[Array, "... h w c"]) -> Float[Array, "... h2 w2 c"]:
    """Doubles height and width by repeating pixels."""
    *leading, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[..., :, None, :, None, :], (*leading, h, 2, w, 2, c))
    return doubled.reshape(*leading, 2 * h, 2 * w, c)


def _boxed(
    initializer: Initializer,
    names: Names,
    adapter: bool,
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike,
) -> Parameter:
    value = initializer(key, shape, dtype)
    return Parameter(value, names=names, initializer=initializer, adapter=adapter)


def _fresh(fan_in: int, zero: bool, steady: bool) -> tuple[Initializer, Initializer]:
    """Returns the initializers of a kernel and its bias."""
    if zero:
        return zeros, zeros
    if steady:
        return functools.partial(_uniform, math.sqrt(3 / fan_in)), zeros
    return uniform_fan_in(fan_in), uniform_fan_in(fan_in)


def _uniform(bound: float, key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _scale_and_bias(module: Module, width: int) -> tuple[Array, Array]:
    """Returns the float32 affine parameters of a norm."""
    scale = module.parameter("scale", ones, (width,), ("norm",))
    bias = module.parameter("bias", zeros, (width,), ("norm",))
    return scale.astype(jnp.float32), bias.astype(jnp.float32)


def _expand(x: Array, ndim: int) -> Array:
    """Adds leading axes up to `ndim`, since ranks are not promoted implicitly."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _product(x: Array, kernel: Array, num_inputs: int = 1) -> Array:
    """Contracts the last axes of `x` with the first of `kernel`.

    If nothing is split, all rows are merged into one axis: in the kernel's gradient, CPUs first
    copy arrays that are contracted over several axes. XLA can't merge axes that are split.
    """
    if may_split():
        axes = (tuple(range(x.ndim - num_inputs, x.ndim)), tuple(range(num_inputs)))
        return jax.lax.dot_general(x, kernel, (axes, ((), ())))
    inputs, rows = math.prod(kernel.shape[:num_inputs]), x.shape[: x.ndim - num_inputs]
    y = x.reshape(math.prod(rows), inputs) @ kernel.reshape(inputs, -1)
    return y.reshape(*rows, *kernel.shape[num_inputs:])
