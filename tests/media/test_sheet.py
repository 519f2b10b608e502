"""Contact sheets and PNGs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax import media
from dynamicrafter_jax.errors import UserError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_write_png(tmp_path: Path):
    picture = noise(20, 30, 3)
    media.write_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)


def find(sheet: np.ndarray, frame: np.ndarray) -> tuple[int, int]:
    """The one place, y and x, where a frame lies on the sheet."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, frame.shape)[:, :, 0]
    (place,) = np.argwhere((windows == frame).all(axis=(2, 3, 4)))
    return int(place[0]), int(place[1])


def test_contact_sheet():
    video = noise(5, 12, 16, 3)
    sheet = media.contact_sheet(video, columns=3)
    places = [find(sheet, frame) for frame in video]
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    assert places == [(rows[i // 3], columns[i % 3]) for i in range(5)]
    assert len(rows) == 2 and rows[1] - rows[0] > 12 and columns[1] - columns[0] > 16
    for y, x in places:
        sheet[y : y + 12, x : x + 16] = 255
    assert (sheet == 255).all()


def test_contact_sheet_with_picture_and_caption():
    video, picture = noise(4, 24, 32, 3), noise(24, 32, 3, seed=1)
    plain = media.contact_sheet(video, columns=9)
    sheet = media.contact_sheet(video, columns=9, picture=picture)
    assert find(sheet, picture)[0] == find(sheet, video[0])[0]
    assert find(sheet, picture)[1] + 32 < find(sheet, video[0])[1]
    assert sheet.shape[0] == plain.shape[0]
    short = media.contact_sheet(video, columns=9, caption="a man surfing")
    long = media.contact_sheet(video, columns=9, caption="a man surfing " * 5)
    np.testing.assert_array_equal(long[: len(plain)], plain)
    assert len(plain) < len(short) < len(long)
    for caption in (short[len(plain) :], long[len(plain) :]):
        assert caption.min() < 100 and (caption[:, :2] == 255).all()
        assert (caption[:, -2:] == 255).all()  # nothing runs off the edge


def test_contact_sheet_needs_a_column():
    with pytest.raises(UserError, match="got 4 and 0"):
        media.contact_sheet(noise(4, 8, 8, 3), columns=0)
