"""Chooses the attention kernel, by platform, shapes and types; no other code does.

| platform | within frames | along time |
| --- | --- | --- |
| TPU | splash (Pallas) for long bfloat16 sequences | element-wise |
| NVIDIA GPU | cuDNN for half precision | one batched product |
| any | chunked | one batched product |

Inputs that a platform's kernel does not support go to the portable form, `chunked`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention.chunked import ACCELERATOR_LIMITS, CPU_LIMITS, chunked_attention
from dynamicrafter_jax.attention.cudnn import cudnn_attention, cudnn_takes
from dynamicrafter_jax.attention.splash import splash_attention, splash_takes
from dynamicrafter_jax.attention.temporal import (
    batched_temporal_attention,
    elementwise_temporal_attention,
)
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.attention import (
    AttentionFn,
    TemporalAttentionFn,
    plain_attention,
    plain_temporal_attention,
)
from dynamicrafter_jax.models.partitioning import Names

# Platform of devices -> fused kernel. `cuda` and `rocm` are names of `gpu`; cuDNN is NVIDIA's.
_FUSED = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}

# With this many frames or more, the sums along time, which grow with t^2, go to matrix units.
_MANY_FRAMES = 64


class Kernels(NamedTuple):
    """The attention functions of the networks.

    Attributes:
        attention: Attention within frames, and in the towers and the VAE.
        temporal_attention: Attention along time.
    """

    attention: AttentionFn
    temporal_attention: TemporalAttentionFn


def choose_attention(mesh: Mesh, kernel: str | None = None) -> Kernels:
    """Returns the kernels for the devices of a mesh; both are hashable and equal by value.

    Args:
        mesh: Determines the platform, and how axes are split.
        kernel: "plain" (einsums) or "chunked" (portable), for all platforms; or "splash" or
            "cudnn", as on a TPU or GPU. By default the one that suits the platform.

    Raises:
        UserError: There is no such kernel.
    """
    platform = mesh.devices.flat[0].platform
    kernel = _FUSED.get(platform, "chunked") if kernel is None else kernel
    if kernel == "plain":
        return Kernels(plain_attention, plain_temporal_attention)
    if kernel not in ("chunked", "splash", "cudnn"):
        raise UserError(f"no attention kernel {kernel!r}: choose plain, chunked, splash or cudnn")
    return Kernels(SplitAttention(mesh, kernel), TemporalAttention(kernel))


@dataclasses.dataclass(frozen=True)
class SplitAttention:
    """An `AttentionFn` that runs a kernel on each device's shard, under `jax.shard_map`.

    Leading axes and heads are padded with zeros if their mesh axes do not divide them.

    Attributes:
        mesh: Splits the axes, by the table in `sharding`.
        kernel: "splash", "cudnn" or "chunked".
    """

    mesh: Mesh
    kernel: str

    def __call__(
        self,
        query: Float[Array, "*b l heads d"],
        key: Float[Array, "*c m heads d"],
        value: Float[Array, "*c m heads d"],
        mask: Bool[Array, "l m"] | None = None,
        names: Names = ("batch",),
    ) -> Float[Array, "*b l heads d"]:
        """See `AttentionFn`."""
        local = functools.partial(_attend, self.kernel)
        if self.mesh.size == 1:
            return local(query, key, value, mask)
        split = [self._axes(names, x) for x in (query, key, value)]
        arrays = [
            jnp.pad(x, [(0, -size % by) for size, by in zip(x.shape, parts, strict=True)])
            for x, (_, parts) in zip((query, key, value), split, strict=True)
        ]
        specs = [spec for spec, _ in split]
        run: Callable[..., Array] = functools.partial(local, mask=None)
        if mask is not None:
            run = local
            arrays.append(mask)
            specs.append(PartitionSpec())
        y = jax.shard_map(
            run, mesh=self.mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False
        )(*arrays)
        return y[tuple(slice(size) for size in query.shape)]

    def _axes(self, names: Names, x: Array) -> tuple[PartitionSpec, tuple[int, ...]]:
        """Returns how an array with the trailing axes tokens, heads and width is split."""
        # Splitting frames over all devices leaves none for heads.
        heads = None if "frames_everywhere" in names else "heads"
        logical = (*names[: x.ndim - 3], None, heads, None)
        return sharding.split_axes(x.shape, logical, self.mesh)


@dataclasses.dataclass(frozen=True)
class TemporalAttention:
    """A `TemporalAttentionFn`, which XLA splits over devices.

    Attributes:
        kernel: "splash" (for TPUs), "cudnn" or "chunked".
    """

    kernel: str

    def __call__(
        self,
        query: Float[Array, "b t n heads d"],
        key: Float[Array, "b t n heads d"],
        value: Float[Array, "b t n heads d"],
    ) -> Float[Array, "b t n heads d"]:
        """See `TemporalAttentionFn`."""
        if self.kernel == "splash" and query.shape[1] < _MANY_FRAMES:
            return elementwise_temporal_attention(query, key, value)
        return batched_temporal_attention(query, key, value)


def _attend(
    kernel: str, query: Array, key: Array, value: Array, mask: Array | None = None
) -> Array:
    """Runs a kernel on whole arrays, with leading axes merged."""
    if key.ndim < query.ndim:  # all frames read the same few keys
        frames = query.shape[1]
        key, value = (
            jnp.broadcast_to(x[:, None], (x.shape[0], frames, *x.shape[1:])) for x in (key, value)
        )
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    if kernel == "splash" and splash_takes(q, k, mask):
        y = splash_attention(q, k, v)
    elif kernel == "cudnn" and cudnn_takes(q, mask):
        y = cudnn_attention(q, k, v)
    else:
        limits = CPU_LIMITS if kernel == "chunked" else ACCELERATOR_LIMITS
        y = chunked_attention(q, k, v, mask, limits)
    return y.reshape(query.shape)
