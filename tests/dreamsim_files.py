"""The weights of DreamSim that the golden numbers were made with, in files as released.

Every tensor is rebuilt from its name. What starts the residual stream of the small networks is
made small, so that the epsilons of norms show in the numbers.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import golden_weights
import numpy as np
import safetensors.numpy

GOLDEN = Path(__file__).parent / "golden"

PATCH, TOKENS, RANK, HEAD = 16, 197, 16, 64
KINDS = {"ensemble": ("dino", "clip", "open_clip"), "dino_vitb16": ("dino",)}
ADAPTERS = {"ensemble": "ensemble_lora", "dino_vitb16": "dino_vitb16_single_lora"}

# Seed, height and width of the pictures.
PICTURES = ((0, 224, 224), (1, 256, 256), (2, 320, 512), (3, 96, 160))


class Sizes(NamedTuple):
    """Of the networks; the fields of `DreamSim` besides its branches."""

    width: int
    layers: int
    heads: int
    embedding: int


SIZES = {"small": Sizes(48, 12, 3, 20), "full": Sizes(768, 12, 12, 512)}

ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": "",
    "r": RANK,
    "lora_alpha": 0.5,
    "lora_dropout": 0.3,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "modules_to_save": None,
    "target_modules": ["qkv"],
}


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """The golden numbers."""
    with np.load(GOLDEN / "picture_metrics.npz") as arrays:
        return dict(arrays)


def pictures(size: str) -> tuple[tuple[int, int, int], ...]:
    """Those that networks of this size were shown."""
    return PICTURES if size == "small" else PICTURES[1:3]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """An 8-bit picture."""
    return np.round((golden_weights.picture(seed, height, width) + 1) * 127.5).astype(np.uint8)


def noisy(image: np.ndarray, seed: int, amount: int = 30) -> np.ndarray:
    """A picture with noise of at most some levels."""
    noise = np.random.RandomState(seed).randint(-amount, amount + 1, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def backbone(branch: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """All tensors of a network by the names in its file."""
    d = sizes.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, TOKENS, d),
        "patch_embed.proj.weight": (d, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (d,),
        **_linear("norm", d),
    }
    if branch != "dino":
        shapes |= {**_linear("pos_drop", d), "proj": (d, sizes.embedding)}
    for i in range(sizes.layers):
        parts = {
            **_linear("norm1", d),
            **_linear("attn.qkv", 3 * d, d),
            **_linear("attn.proj", d, d),
            **_linear("norm2", d),
            **_linear("mlp.fc1", 4 * d, d),
            **_linear("mlp.fc2", d, 4 * d),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in parts.items()}
    return {name: _tensor(f"{branch}.{name}", shape, sizes) for name, shape in shapes.items()}


def adapter(kind: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """All tensors of LoRA by the names in its file."""
    d = sizes.width
    shapes = {
        f"base_model.model.extractor_list.{i}.model.blocks.{n}.attn.qkv.lora_{letter}.weight": shape
        for i in range(len(KINDS[kind]))
        for n in range(sizes.layers)
        for letter, shape in (("A", (RANK, d)), ("B", (3 * d, RANK)))
    }
    return {name: _tensor(f"{kind}.{name}", shape, sizes) for name, shape in shapes.items()}


def write(folder: Path, kind: str, sizes: Sizes) -> Path:
    """Writes the files of a kind, as the `dreamsim` package downloads them; returns the folder."""
    import torch

    def tensors(branch: str) -> dict[str, Any]:
        return {name: torch.from_numpy(x) for name, x in backbone(branch, sizes).items()}

    (folder / "checkpoints").mkdir()
    (folder / ADAPTERS[kind]).mkdir()
    torch.save(tensors("dino"), folder / "checkpoints/dino_vitbase16_pretrain.pth")
    for branch in KINDS[kind][1:]:
        state = {"state_dict": tensors(branch)}
        torch.save(state, folder / f"{branch}_vitb16_pretrain.pth.tar")
    safetensors.numpy.save_file(
        adapter(kind, sizes), folder / ADAPTERS[kind] / "adapter_model.safetensors"
    )
    (folder / ADAPTERS[kind] / "adapter_config.json").write_text(json.dumps(ADAPTER_CONFIG))
    return folder


def _linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _tensor(name: str, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    values = golden_weights.tensor(name, shape)
    first = ("cls_token", "pos_embed", "patch_embed", "pos_drop")
    if sizes == SIZES["small"] and any(part in name for part in first):
        values = values * np.float32(0.01)
    return values
