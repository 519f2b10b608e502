"""Perceptual Input Conformity: how well a video preserves the image that it was made from.

PIC = mean over frames of 1 - D(image, frame), where D is DreamSim's distance (arXiv 2310.12190).
"""

import numpy as np
from jaxtyping import Array, Float, Float64, PyTree, UInt8

from dynamicrafter_jax.metrics import dreamsim


def conformity(
    params: PyTree, seen: UInt8[Array, "b t1 h w 3"], model: dreamsim.DreamSim | None = None
) -> Float[Array, "b t"]:
    """Returns how similar each frame is to the image of its video; 1 if it is the same.

    This is a network for `features.Extractor`. All frames of a batch go through DreamSim at once.

    Args:
        params: From `dreamsim_weights.load_dreamsim`.
        seen: For each video, the image that it was made from, followed by its frames.
        model: See `dreamsim.embed`.
    """
    b, t1, *size = seen.shape
    vectors = dreamsim.embed(params, seen.reshape(b * t1, *size), model).reshape(b, t1, -1)
    image, frames = vectors[:, :1], vectors[:, 1:]
    return 1 - dreamsim.distance(image.repeat(t1 - 1, 1), frames)


def pic(framewise: Float[np.ndarray, "n t"]) -> Float64[np.ndarray, " n"]:
    """Returns the PIC of videos, from the conformity of their frames."""
    return framewise.astype(np.float64).mean(-1)
