"""Measures of frames against scikit-image, and where their values are known."""

import dreamsim_files
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.features import Extractor
from dynamicrafter_jax.metrics.frames import (
    COLUMNS,
    frame_consistency,
    frame_measures,
    motion_degree,
    psnr,
    ssim,
)


@pytest.mark.parametrize("which", dreamsim_files.PICTURES)
def test_noise_is_measured_as_scikit_image_does(which):
    golden, seed = dreamsim_files.golden(), which[0]
    picture = dreamsim_files.picture(*which)
    pair = (jnp.asarray(x)[None] for x in (picture, dreamsim_files.noisy(picture, seed)))
    first, second = pair
    assert abs(float(psnr(first, second)[0]) - golden[f"psnr_{seed}"]) < 1e-4
    assert abs(float(ssim(first, second)[0]) - golden[f"ssim_{seed}"]) < 1e-5


def grey(level):
    return jnp.full((1, 16, 20, 3), level, jnp.uint8)


def test_flat_pictures_have_known_values():
    assert np.isinf(psnr(grey(7), grey(7))[0]) and abs(float(ssim(grey(7), grey(7))[0]) - 1) < 1e-6
    assert abs(float(psnr(grey(100), grey(110))[0]) - 20 * np.log10(25.5)) < 1e-5
    # Without contrast, luminance alone counts (Wang et al. 2004, Eq. 6).
    luminance = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert abs(float(ssim(grey(100), grey(150))[0]) - luminance) < 1e-5


def test_motion_is_the_change_from_frame_to_frame():
    levels = np.asarray([[0, 51, 51, 255], [9, 9, 9, 9]], np.uint8)
    videos = jnp.asarray(np.broadcast_to(levels[..., None, None, None], (2, 4, 5, 6, 3)))
    assert np.allclose(motion_degree(videos), [1 / 3, 0], atol=1e-6)


def test_cosines():
    angles = np.deg2rad([[0, 60, 60, 150], [0, 0, 180, 180]])
    vectors = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    assert np.allclose(frame_consistency(jnp.asarray(vectors)), [0.5, 1 / 3], atol=1e-6)


def test_devices_share_videos():
    def seen(seed):
        picture = dreamsim_files.picture(seed, 32, 40)
        return np.stack([dreamsim_files.noisy(picture, i, 9 * i) for i in range(4)])

    videos = [(str(seed), seen(seed)) for seed in range(3)]
    ((names, rows),) = Extractor(frame_measures, {}, sharding.make_mesh(data=4))(videos)
    assert names == ("0", "1", "2") and rows.shape == (3, len(COLUMNS))
    for row, (_, video) in zip(rows, videos, strict=True):
        image, first, rest = (jnp.asarray(x)[None] for x in (video[0], video[1], video[1:]))
        alone = [psnr(image, first), ssim(image, first), motion_degree(rest)]
        assert np.allclose(row, np.ravel(alone), rtol=1e-5)


def test_what_can_not_be_measured_is_refused():
    with pytest.raises(UserError, match="pictures of 10x20 are too small"):
        ssim(grey(0)[:, :10], grey(0)[:, :10])
    with pytest.raises(UserError, match="1 frame has no neighbouring"):
        motion_degree(grey(0)[None])
    with pytest.raises(UserError, match="1 frame has no neighbouring"):
        frame_consistency(jnp.ones((2, 1, 8)))
