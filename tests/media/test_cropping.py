"""Cover and crop: what lies where, and that nothing is added."""

import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax import media


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(cropped: np.ndarray) -> np.ndarray:
    """The levels from 0 to 255 that became [-1, 1]; fails where one is not whole."""
    levels = (cropped.astype(np.float64) + 1) * 127.5
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-5)
    return np.rint(levels)


def test_a_picture_of_the_right_size_is_kept_exactly():
    picture = noise(33, 47, 3)
    picture[0, :2] = [[0, 255, 127], [128, 1, 254]]
    cropped = media.cover_and_crop(picture, 33, 47)
    assert cropped.dtype == np.float32
    np.testing.assert_array_equal(pixels(cropped), picture)
    assert cropped.min() == -1 and cropped.max() == 1


def test_a_picture_of_the_right_scale_is_cut_and_not_resampled():
    picture = noise(33, 48, 3)
    middle = media.cover_and_crop(picture, 20, 48)  # 6.5 rows too many above and below
    np.testing.assert_array_equal(pixels(middle), picture[6:26])
    middle = media.cover_and_crop(picture, 33, 31)
    np.testing.assert_array_equal(pixels(middle), picture[:, 8:39])


SIZES = [
    (64, 64, 32, 32),
    (64, 200, 32, 48),
    (200, 64, 32, 48),
    (16, 300, 64, 96),
    (300, 16, 64, 96),
]


@pytest.mark.parametrize("h, w, height, width", SIZES)
def test_gradients_land_where_they_should(h: int, w: int, height: int, width: int):
    """Bicubic interpolation keeps a straight ramp straight, so every pixel's place shows."""
    y, x = np.mgrid[:h, :w]
    ramp = np.stack([x * 250 / (w - 1), y * 250 / (h - 1), 0 * x], -1)
    cropped = media.cover_and_crop(np.rint(ramp).astype(np.uint8), height, width)
    scale = max(height / h, width / w)
    # Pixel j's centre, from the middle of the result, is as far from the middle of the picture;
    # the cut starts at a whole pixel, so it may be off by half of one.
    out_x = ((np.arange(width) + 0.5 - width / 2) / scale + w / 2 - 0.5) * 250 / (w - 1)
    out_y = ((np.arange(height) + 0.5 - height / 2) / scale + h / 2 - 0.5) * 250 / (h - 1)
    levels = (cropped.astype(np.float64) + 1) * 127.5
    inside = slice(4, -4)  # the outermost pixels have no neighbours to follow the ramp by
    slack = 1.1 + 0.5 / scale * 250 / (min(h, w) - 1)
    assert np.abs(levels[..., 0] - out_x)[:, inside].max() < slack
    assert np.abs(levels[..., 1] - out_y[:, None])[inside].max() < slack


@pytest.mark.parametrize("h, w, height, width", SIZES)
def test_no_borders(h: int, w: int, height: int, width: int):
    """The release pads a picture narrower than the target with grey."""
    coarse = Image.fromarray(noise(max(h // 4, 4), max(w // 4, 4), 3))
    picture = np.asarray(coarse.resize((w, h), Image.Resampling.NEAREST))
    cropped = media.cover_and_crop(picture, height, width)
    for border in (cropped[0], cropped[-1], cropped[:, 0], cropped[:, -1]):
        assert border.std() > 0.1


@pytest.mark.parametrize("w, h", [(300, 200), (200, 300), (90, 60)])
def test_a_circle_stays_a_circle(w: int, h: int):
    y, x = np.mgrid[:h, :w] + 0.5
    disc = np.hypot(x - w / 2, y - h / 2) < min(w, h) * 0.3
    picture = np.repeat(disc[..., None], 3, axis=-1).astype(np.uint8) * 255
    diameter = disc.any(axis=0).sum()
    cropped = media.cover_and_crop(picture, 128, 160)
    disc = cropped[..., 0] > 0
    expected = diameter * max(128 / h, 160 / w)
    assert abs(disc.any(axis=0).sum() - expected) <= 1.5
    assert abs(disc.any(axis=1).sum() - expected) <= 1.5
    y, x = np.nonzero(disc)
    assert abs(x.mean() - 79.5) <= 1 and abs(y.mean() - 63.5) <= 1


def test_shrinking_does_not_alias():
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = media.cover_and_crop(stripes, 32, 32)[:, 1:-1]
    assert np.abs(grey).max() < 0.01
