"""Perceptual Input Conformity: how much of an image is kept by a video made from it.

PIC = mean over frames of 1 - D(image, frame), D the distance of DreamSim (arXiv 2310.12190).
"""

import numpy as np
from jaxtyping import Array, Float, Float64, PyTree, UInt8

from dynamicrafter_jax.metrics import dreamsim


def conformity(
    params: PyTree, seen: UInt8[Array, "b t1 h w 3"], model: dreamsim.DreamSim | None = None
) -> Float[Array, "b t"]:
    """Returns what each frame keeps of the image of its video: 1 for all of it.

    It is a network that `features.Extractor` runs, many videos after one another, split over the
    devices of a mesh. All frames of a batch go through DreamSim at once.

    Args:
        params: From `dreamsim_weights.load_dreamsim`.
        seen: Each video behind the image that it was made from.
        model: See `dreamsim.embed`.
    """
    b, t1, *size = seen.shape
    vectors = dreamsim.embed(params, seen.reshape(b * t1, *size), model).reshape(b, t1, -1)
    image, frames = vectors[:, :1], vectors[:, 1:]
    return 1 - dreamsim.distance(image.repeat(t1 - 1, 1), frames)


def pic(framewise: Float[np.ndarray, "n t"]) -> Float64[np.ndarray, " n"]:
    """Returns the PIC of videos, from what their frames keep."""
    return framewise.astype(np.float64).mean(-1)
