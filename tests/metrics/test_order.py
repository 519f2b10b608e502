"""What is further from real clips gets a larger distance.

The network is I3D with random weights, and sees small frames. So this shows that clips, features
and distances are put together rightly, and nothing of how well they agree with people.
"""

import jax
import numpy as np
import pytest

from dynamicrafter_jax.metrics.fvd import Moments, frechet_distance
from dynamicrafter_jax.metrics.i3d import I3D

FRAMES, SIZE, CLIPS, WIDTH = 9, 32, 14, 6


def clips(seed):
    """Waves that cross the frames, each in a direction of its own."""
    draw = np.random.default_rng(seed)
    rows, columns, frames = np.mgrid[0:SIZE, 0:SIZE, 0:FRAMES].transpose(0, 3, 1, 2)
    direction, start = draw.uniform(0, 2 * np.pi, (2, CLIPS, 1, 1, 1))
    along = np.cos(direction) * rows + np.sin(direction) * columns
    waves = np.cos(0.6 * along - 0.5 * frames + start)
    return np.repeat(waves[..., None], 3, -1).astype(np.float32)


@pytest.fixture(scope="module")
def features(i3d_params):
    """Features of real clips, of others as real, and of those spoilt in several ways."""
    run = jax.jit(I3D(frame_size=SIZE).apply)
    clean, draw = clips(1), np.random.default_rng(2)
    noise = draw.standard_normal(clean.shape, np.float32)
    spoilt = {
        "clean": clean,
        "light noise": clean + np.float32(0.2) * noise,
        "heavy noise": clean + np.float32(0.6) * noise,
        "shuffled": np.stack([clip[draw.permutation(FRAMES)] for clip in clean]),
        "still": np.broadcast_to(clean[:, :1], clean.shape),
    }
    return {
        name: np.asarray(run({"params": i3d_params}, x))[:, :WIDTH]  # fewer than there are clips
        for name, x in {"real": clips(0), **spoilt}.items()
    }


def test_worse_clips_are_further(features):
    real = Moments.of(features["real"])
    far = {name: frechet_distance(real, Moments.of(x)) for name, x in features.items()}
    assert far["clean"] < far["light noise"] < far["heavy noise"]
    assert far["clean"] < far["shuffled"]
    assert far["clean"] < far["still"]
