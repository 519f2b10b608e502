"""I3D in plain PyTorch, with the names used in files of its weights."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from jaxtyping import PyTree
from torch import Tensor, nn

# Of modules and tensors: our names, and theirs.
NAMES = {
    "conv": "conv3d",
    "norm": "bn",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Module):
    """The same as `metrics.i3d.I3D`, for clips `b c t h w`."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = Unit(1024, 400, norm=False)
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (inputs, features) in MIXED.items():
            self.add_module(name, Mixed(inputs, features))

    def forward(self, video: Tensor) -> Tensor:
        x = max_pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean((2, 3, 4))


class Mixed(nn.Module):
    """Four parallel branches."""

    def __init__(self, inputs: int, features: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = features
        self.b0 = Unit(inputs, b0)
        self.b1a = Unit(inputs, b1a)
        self.b1b = Unit(b1a, b1b, 3)
        self.b2a = Unit(inputs, b2a)
        self.b2b = Unit(b2a, b2b, 3)
        self.b3b = Unit(inputs, b3b)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool3d(x, 3, stride=1, padding=1)
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled))
        return torch.cat(branches, 1)


class Unit(nn.Module):
    """A convolution, then batch normalisation and ReLU; or a convolution with a bias."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, norm: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = pad(x, (self.kernel,) * 3, (self.stride,) * 3)
        y = self.conv3d(x)
        return F.relu(self.bn(y), inplace=True) if hasattr(self, "bn") else y


def max_pool(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad(x, window, stride), window, stride)


def pad(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Adds zeros as TensorFlow's 'SAME' does, which change no maximum of non-negative inputs."""
    sizes = []
    for length, size, step in zip(x.shape[:1:-1], window[::-1], stride[::-1], strict=True):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        sizes += [total // 2, total - total // 2]
    return F.pad(x, sizes)


def load(network: nn.Module, params: PyTree) -> nn.Module:
    """Copies our parameters into the network, and returns it.

    Raises:
        RuntimeError: One has a tensor that the other lacks.
    """
    state = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        value = np.array(leaf, np.float32)
        if path[-1] == "kernel":
            value = np.ascontiguousarray(value.transpose(4, 3, 0, 1, 2))
        name = ".".join(NAMES.get(str(part), str(part)) for part in path)
        state[name] = torch.from_numpy(value)
    counters = {name: value for name, value in network.state_dict().items() if "batches" in name}
    network.load_state_dict({**state, **counters})
    return network.eval().requires_grad_(False)
