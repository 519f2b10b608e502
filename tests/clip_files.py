"""A small OpenCLIP whose joint embedding the golden numbers are of, rebuilt from names."""

import json
from pathlib import Path
from typing import Any

import golden_weights
import numpy as np

from dynamicrafter_jax.metrics.clip_embedding import ClipEmbedding
from dynamicrafter_jax.models.clip import ImageEncoder, TextEncoder

GOLDEN = Path(__file__).parent / "golden"

EMBEDDING = 32
VISION: dict[str, Any] = {
    "width": 64,
    "layers": 2,
    "head_width": 16,
    "patch_size": 14,
    "image_size": 224,
}
TEXT: dict[str, Any] = {
    "width": 48,
    "layers": 3,
    "heads": 4,
    "context_length": 77,
    "vocab_size": 49408,
}


def model() -> ClipEmbedding:
    """The network of these sizes."""
    text = TEXT | {"layers": TEXT["layers"] + 1}  # of which the tower leaves one out
    return ClipEmbedding(TextEncoder(**text), ImageEncoder(**VISION), EMBEDDING)


def token_ids() -> np.ndarray:
    """Ids of some texts."""
    return np.asarray(json.loads((GOLDEN / "tokens.json").read_text())["ids"][:4], np.int32)


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes by the names of OpenCLIP, buffers included."""
    width, context = TEXT["width"], TEXT["context_length"]
    tokens = 1 + (VISION["image_size"] // VISION["patch_size"]) ** 2
    return {
        "positional_embedding": (context, width),
        "text_projection": (width, EMBEDDING),
        "logit_scale": (),
        "attn_mask": (context, context),
        "visual.class_embedding": (VISION["width"],),
        "visual.positional_embedding": (tokens, VISION["width"]),
        "visual.proj": (VISION["width"], EMBEDDING),
        "visual.conv1.weight": (VISION["width"], 3, VISION["patch_size"], VISION["patch_size"]),
        **_norm("visual.ln_pre", VISION["width"]),
        **_blocks("visual.transformer", VISION["width"], VISION["layers"]),
        **_norm("visual.ln_post", VISION["width"]),
        **_blocks("transformer", width, TEXT["layers"]),
        "token_embedding.weight": (TEXT["vocab_size"], width),
        **_norm("ln_final", width),
    }


def tensors() -> dict[str, np.ndarray]:
    """All tensors by the names of OpenCLIP, but for the mask."""
    return {
        name: np.asarray(golden_weights.tensor(f"clip.{name}", shape), np.float32)
        for name, shape in shapes().items()
        if name != "attn_mask"
    }


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _blocks(name: str, d: int, layers: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for i in range(layers):
        parts = {
            **_norm("ln_1", d),
            "attn.in_proj_weight": (3 * d, d),
            "attn.in_proj_bias": (3 * d,),
            "attn.out_proj.weight": (d, d),
            "attn.out_proj.bias": (d,),
            **_norm("ln_2", d),
            "mlp.c_fc.weight": (4 * d, d),
            "mlp.c_fc.bias": (4 * d,),
            "mlp.c_proj.weight": (d, 4 * d),
            "mlp.c_proj.bias": (d,),
        }
        found |= {f"{name}.resblocks.{i}.{part}": shape for part, shape in parts.items()}
    return found
