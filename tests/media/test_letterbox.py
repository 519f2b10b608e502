"""Letterboxing: the whole picture, in its own aspect, and where it is."""

import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax import media
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import Window


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def levels(pixels: np.ndarray) -> np.ndarray:
    """The levels from 0 to 255 that became [-1, 1]."""
    return np.rint((pixels.astype(np.float64) + 1) * 127.5)


@pytest.mark.parametrize(
    "h, w, window",
    [
        (320, 512, Window(0, 0, 320, 512)),
        (640, 1024, Window(0, 0, 320, 512)),
        (1000, 1000, Window(0, 96, 320, 320)),
        (1920, 1080, Window(0, 166, 320, 180)),
        (1080, 1920, Window(16, 0, 288, 512)),
        (100, 400, Window(96, 0, 128, 512)),
        (427, 640, Window(0, 16, 320, 480)),  # 479.6
        (1000, 1599, Window(0, 0, 320, 512)),  # 511.7
    ],
)
def test_the_window_is_as_large_as_the_aspect_allows(h: int, w: int, window: Window):
    picture = np.zeros((h, w, 3), np.uint8)
    pixels, found = media.letterbox(picture, 320, 512)
    assert found == window and pixels.shape == (320, 512, 3)


def test_windows_of_any_picture_fill_the_frame_one_way_and_are_even_the_other():
    draw = np.random.default_rng(0).integers
    for _ in range(100):
        h, w = draw(40, 200, 2)
        height, width = (2 * draw(32, 64, 2)).tolist()
        pixels, window = media.letterbox(noise(h, w, 3), height, width)
        assert pixels.shape == (height, width, 3)
        assert window.height == height or window.width == width
        assert window.height <= height and window.width <= width
        assert window.height % 2 == window.width % 2 == 0
        for start, side, frame in (
            (window.top, window.height, height),
            (window.left, window.width, width),
        ):
            assert 0 <= frame - side - 2 * start <= 1  # in the middle
        scale = min(height / h, width / w)
        assert abs(window.height - h * scale) <= 1 and abs(window.width - w * scale) <= 1


def test_the_picture_is_whole_and_its_borders_are_repeated():
    picture = noise(30, 20, 3)
    pixels, window = media.letterbox(picture, 30, 26)
    assert window == Window(0, 3, 30, 20)
    assert pixels.dtype == np.float32
    expected = np.concatenate(
        [np.repeat(picture[:, :1], 3, axis=1), picture, np.repeat(picture[:, -1:], 3, axis=1)],
        axis=1,
    )
    np.testing.assert_array_equal(levels(pixels), expected)
    np.testing.assert_array_equal(levels(window.cut(pixels)), picture)
    pixels, window = media.letterbox(picture.transpose(1, 0, 2), 25, 30)
    assert window == Window(2, 0, 20, 30)  # the odd row is below
    np.testing.assert_array_equal(levels(pixels)[:3], [expected[:, 3]] * 3)
    np.testing.assert_array_equal(levels(pixels)[-4:], [expected[:, -4]] * 4)


@pytest.mark.parametrize("h, w", [(200, 100), (50, 25), (60, 180)])
def test_a_picture_is_resized_as_pillow_does(h: int, w: int):
    picture = noise(h, w, 3)
    pixels, window = media.letterbox(picture, 64, 96)
    size = (window.width, window.height)
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(levels(window.cut(pixels)), np.asarray(resized))


def test_of_the_frame_s_aspect_both_fits_are_the_same():
    picture = noise(128, 192, 3)
    pixels, window = media.letterbox(picture, 64, 96)
    assert window == Window(0, 0, 64, 96)
    np.testing.assert_array_equal(pixels, media.cover_and_crop(picture, 64, 96))


def test_videos_are_cut_like_pictures():
    video = noise(2, 5, 8, 10, 3)
    np.testing.assert_array_equal(Window(1, 2, 4, 6).cut(video), video[:, :, 1:5, 2:8])


@pytest.mark.parametrize("h, w", [(16, 400), (900, 20)])
def test_a_picture_of_which_little_would_be_left_is_refused(h: int, w: int):
    with pytest.raises(UserError, match=rf"{w} x {h} pixels is too narrow .* in 96 x 64"):
        media.letterbox(noise(h, w, 3), 64, 96)


def test_finished_arrays_are_used_as_they_are():
    ready = noise(32, 48, 3).astype(np.float32) / 255
    for fit in ("crop", "letterbox"):
        pixels, window = media.fit_image(ready, 32, 48, fit)
        np.testing.assert_array_equal(pixels, ready)
        assert window == Window(0, 0, 32, 48)


def test_pictures_of_one_batch_share_a_window():
    small, large, square = noise(20, 60, 3), noise(40, 120, 3), noise(40, 40, 3)
    pixels, window = media.fit_images([small, large], 32, 48, "letterbox")
    assert window == Window(8, 0, 16, 48) and pixels.shape == (2, 32, 48, 3)
    for one, picture in zip(pixels, (small, large), strict=True):
        np.testing.assert_array_equal(one, media.fit_image(picture, 32, 48, "letterbox")[0])
    with pytest.raises(UserError, match="48 x 16 and 32 x 32 pixels"):
        media.fit_images([small, large, square], 32, 48, "letterbox")
    pixels, window = media.fit_images([small, square], 32, 48, "crop")
    assert window == Window(0, 0, 32, 48)
    np.testing.assert_array_equal(pixels[1], media.fit_image(square, 32, 48, "crop")[0])


def test_an_unknown_fit_is_refused():
    with pytest.raises(UserError, match="fit is 'stretch': choose from crop, letterbox"):
        media.fit_image(noise(32, 48, 3), 32, 48, "stretch")
