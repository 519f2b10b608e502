"""DreamSim in plain PyTorch, with our names."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
import torch_layers
from PIL import Image
from torch import Tensor, nn

from dynamicrafter_jax.metrics.dreamsim import IMAGE_SIZE, DreamSim
from dynamicrafter_jax.models.clip import PIXEL_MEAN, PIXEL_STD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Ensemble(nn.ModuleDict):
    """The same as `metrics.dreamsim.DreamSim`, for 8-bit pictures `b h w c`."""

    def __init__(self, model: DreamSim) -> None:
        kinds: Mapping[str, tuple[int | None, str, float]] = {
            "dino": (None, "gelu", 1e-6),
            "clip": (model.embedding, "quick_gelu", 1e-5),
            "open_clip": (model.embedding, "gelu", 1e-5),
        }
        sizes = (model.width, model.layers, model.heads)
        super().__init__({n: VisionTransformer(*sizes, *kinds[n]) for n in model.branches})

    def forward(self, images: np.ndarray) -> Tensor:
        pixels = torch.stack([torch.from_numpy(_resized(image)) for image in images])
        pixels = pixels.permute(0, 3, 1, 2).float() / 255
        found = []
        for name, network in self.items():
            mean, std = (PIXEL_MEAN, PIXEL_STD)
            if name == "dino":
                mean, std = IMAGENET_MEAN, IMAGENET_STD
            offset, scale = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (mean, std))
            found.append(network((pixels - offset) / scale))
        features = torch.cat(found, -1)
        centred = features - features.mean(-1, keepdim=True)
        return centred / centred.norm(dim=-1, keepdim=True)


class VisionTransformer(nn.Module):
    """The same as `metrics.vit.VisionTransformer`, but with all tokens of the last block."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        embedding: int | None,
        activation: str,
        epsilon: float,
        patch: int = 16,
    ) -> None:
        super().__init__()
        tokens = 1 + (IMAGE_SIZE // patch) ** 2
        self.class_embedding = nn.Parameter(torch.empty(width))
        # Transposed, since that is how parameters of two axes are loaded.
        self.positional_embedding = nn.Parameter(torch.empty(width, tokens))
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.layers, self.embedding = layers, embedding
        for i in range(layers):
            self.add_module(f"block_{i}", Block(width, heads, activation, epsilon))
        if embedding is not None:
            self.ln_pre, self.ln_post = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))
            self.projection = nn.Parameter(torch.empty(embedding, width))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(image), 1, -1)
        x = torch.cat([first, patches], 1) + self.positional_embedding.T
        if self.embedding is not None:
            x = self.ln_pre(x)
        for i in range(self.layers):
            x = self.get_submodule(f"block_{i}")(x)
        x = x[:, 0]
        return x if self.embedding is None else F.linear(self.ln_post(x), self.projection)


class Block(nn.Module):
    """The same as `metrics.vit.Block`."""

    def __init__(self, width: int, heads: int, activation: str, epsilon: float) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.mlp_in(self.ln_2(x))
        y = F.gelu(y) if self.activation == "gelu" else y * torch.sigmoid(1.702 * y)
        return x + self.mlp_out(y)


def load(model: DreamSim, params: Mapping) -> nn.Module:
    """Returns the networks with our parameters."""
    return torch_layers.load(Ensemble(model), params)


def _resized(image: np.ndarray) -> np.ndarray:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
