"""The golden weights of I3D, by the names of its PyTorch port, and the clips it was shown."""

import functools
import json
from pathlib import Path

import golden_weights
import numpy as np

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """All tensors but the counters."""
    manifest = json.loads((GOLDEN / "manifest_i3d.json").read_text())
    return {
        name: values * np.float32(1.6) if name.endswith("conv3d.weight") else values
        for name, values in golden_weights.build(manifest).items()
    }


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """The golden numbers."""
    with np.load(GOLDEN / "video_metrics.npz") as arrays:
        return dict(arrays)


def clip(seed: int, frames: int) -> np.ndarray:
    """A clip in [-1, 1]."""
    return np.stack(
        [
            golden_weights.picture(seed + i // 4, 224, 224) * np.float32(0.5 + 0.03 * i)
            for i in range(frames)
        ]
    )
