"""Shared parts of the PyTorch networks: loading our parameters, transformers, fused attention."""

from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import PyTree
from torch import Tensor, nn

LEAVES = {"weight": ("kernel", "scale"), "bias": ("bias",)}


def load(module: nn.Module, params: PyTree) -> nn.Module:
    """Copies our parameters into a module, and returns it.

    Args:
        module: The module; it may be on PyTorch's meta device, which avoids drawing parameters.
        params: The tree of the Flax module with the same name.

    Raises:
        ValueError: One has a parameter that the other lacks.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parent, _, kind = name.rpartition(".")
            paths = [f"{parent}.{leaf}".lstrip(".") for leaf in LEAVES.get(kind, (kind,))]
            found = [path for path in paths if path in leaves]
            if not found:
                raise ValueError(f"our parameters lack {name}")
            parameter.copy_(torch.from_numpy(_layout(leaves.pop(found[0]), parameter.shape)))
    if leaves:
        raise ValueError(f"the module lacks {', '.join(leaves)}")
    return module.eval().requires_grad_(False)


def channels_first(x: Any) -> Tensor:
    """Returns `... h w c` as `n c h w`."""
    array = np.asarray(x, np.float32)
    array = array.reshape(-1, *array.shape[-3:]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def tensor(x: Any) -> Tensor:
    """Returns an array as a tensor with the same axes."""
    return torch.from_numpy(np.array(x))


def relative_error(theirs: Tensor, ours: Any) -> float:
    """Returns max|ours - theirs| / max|theirs|; ours is `... h w c`, theirs `n c h w`."""
    expected = theirs.float()
    return float((channels_first(ours) - expected).abs().max() / expected.abs().max())


class Attention(nn.Module):
    """Self-attention; in the VAE, it has biases and a single head."""

    def __init__(self, channels: int, heads: int, head_width: int, bias: bool = False) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.query = nn.Linear(channels, inner, bias=bias)
        self.key = nn.Linear(channels, inner, bias=bias)
        self.value = nn.Linear(channels, inner, bias=bias)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_attend(self.heads, self.query(x), self.key(x), self.value(x)))


class DualCrossAttention(nn.Module):
    """Attention of one query to text and image tokens, whose results are added."""

    def __init__(
        self, channels: int, heads: int, head_width: int, context: int, learnable_scale: bool
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.query = nn.Linear(channels, inner, bias=False)
        for name in ("text_key", "text_value", "image_key", "image_value"):
            self.add_module(name, nn.Linear(context, inner, bias=False))
        self.alpha = nn.Parameter(torch.zeros(())) if learnable_scale else None
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, text: Tensor, image: Tensor) -> Tensor:
        project = self.get_submodule
        query, image = self.query(x), image.flatten(0, 1)
        clip = query.reshape(len(text), -1, query.shape[-1])  # all frames read the same text
        from_text = _attend(
            self.heads, clip, project("text_key")(text), project("text_value")(text)
        ).reshape(query.shape)
        from_image = _attend(
            self.heads, query, project("image_key")(image), project("image_value")(image)
        )
        if self.alpha is not None:
            from_image = from_image * (torch.tanh(self.alpha) + 1)
        return self.out(from_text + from_image)


class FeedForward(nn.ModuleDict):
    """GEGLU."""

    def __init__(self, width: int) -> None:
        super().__init__({"in": nn.Linear(width, 8 * width), "out": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self["in"](x).chunk(2, -1)
        return self["out"](value * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """The transformer within each frame."""

    def __init__(
        self, channels: int, heads: int, head_width: int, context: int, learnable_scale: bool
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(inner) for _ in range(3))
        self.attn1 = Attention(inner, heads, head_width)
        self.attn2 = DualCrossAttention(inner, heads, head_width, context, learnable_scale)
        self.ff = FeedForward(inner)
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, text: Tensor, image: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        y = y + self.attn1(self.norm1(y))
        y = y + self.attn2(self.norm2(y), text, image)
        y = self.proj_out(y + self.ff(self.norm3(y)))
        return x + y.transpose(1, 2).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """The transformer along time, at each pixel."""

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(inner) for _ in range(3))
        self.attn1 = Attention(inner, heads, head_width)
        self.attn2 = Attention(inner, heads, head_width)
        self.ff = FeedForward(inner)
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        clips = as_clips(x, batch)
        b, c, t, h, w = clips.shape
        y = self.proj_in(self.norm(clips).permute(0, 3, 4, 2, 1).reshape(b * h * w, t, c))
        y = y + self.attn1(self.norm1(y))
        y = y + self.attn2(self.norm2(y))
        y = self.proj_out(y + self.ff(self.norm3(y)))
        return x + y.reshape(b, h, w, t, c).permute(0, 3, 4, 1, 2).reshape(x.shape)


def _layout(leaf: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns our parameter, a kernel `*k in out`, in PyTorch's layout, `out in *k`."""
    array = np.array(leaf, np.float32)
    if len(shape) > 1:
        array = array.reshape(-1, shape[1], shape[0]).transpose(2, 1, 0)
    return array.reshape(shape)


def _attend(heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes fused attention for `n l (heads d)`."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def as_clips(x: Tensor, batch: int) -> Tensor:
    """Returns `(b t) c h w` as `b c t h w`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def as_frames(x: Tensor) -> Tensor:
    """Returns `b c t h w` as `(b t) c h w`."""
    return x.transpose(1, 2).flatten(0, 1)
