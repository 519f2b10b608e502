"""The photographs that scenes are made from."""

import functools
import io
from importlib import resources
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

_TRAINED_ON = ("astronaut", "brick", "camera", "chelsea", "china", "gravel", "hubble", "retina")
PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": _TRAINED_ON,
    "validation": _TRAINED_ON,
    "test": ("coffee", "flower", "rocket"),
}
"""Names by split: test photographs are used neither for training nor for choosing anything."""

_FOLDERS = {"coffee": "assets", "rocket": "assets"}
_LONG_SIDE = 320


@functools.lru_cache
def photograph(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a photograph, with its long side scaled to at most 320 pixels."""
    folder = resources.files("dynamicrafter_jax") / _FOLDERS.get(name, "assets/photographs")
    with Image.open(io.BytesIO((folder / f"{name}.jpg").read_bytes())) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
