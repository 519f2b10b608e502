"""Frames with alpha are laid over white, in whatever video they come."""

import io
import os

import numpy as np
import pytest
import video_files
from PIL import Image

from dynamicrafter_jax.data.tfds.source import film
from dynamicrafter_jax.data.videos.decoding import open_video

SIZE = 32, 64
COLOUR = np.array([200, 100, 0])
# Alpha of four bars, and what is shown: 0.2 of the colour and 0.8 of white, and so on.
ALPHAS = [0, 51, 102, 255]
SHOWN = [[255, 255, 255], [244, 224, 204], [233, 193, 153], [200, 100, 0]]


def pixels(alphas) -> np.ndarray:
    frame = np.empty((*SIZE, 4), np.uint8)
    frame[..., :3] = COLOUR
    frame[..., 3] = np.repeat(alphas, SIZE[1] // 4)
    return frame


def of_palette(alphas) -> Image.Image:
    picture = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(32, 0), "P")
    picture.putpalette(COLOUR.tolist() * 4)
    picture.info["transparency"] = bytes(alphas)
    return picture


def read(file: str | bytes) -> np.ndarray:
    with open_video(file, "a") as reader:
        return reader.read([0, 1], *SIZE)


@pytest.mark.parametrize("make", [lambda a: Image.fromarray(pixels(a)), of_palette])
@pytest.mark.parametrize("alphas, shown", [(ALPHAS, SHOWN), ([255] * 4, [COLOUR] * 4)])
def test_strips_of_pictures(make, alphas, shown):
    buffer = io.BytesIO()
    make(alphas).save(buffer, "PNG")
    video = read(film("a", [buffer.getvalue()] * 2, 8))
    np.testing.assert_array_equal(video[:, ::16, 8::16], np.broadcast_to(shown, (2, 2, 4, 3)))


@pytest.mark.parametrize("codec, pixel_format, tolerance", [
    ("qtrle", "argb", 0),
    ("png", "rgba", 0),
    ("prores_ks", "yuva444p10le", 4),
])  # fmt: skip
def test_videos(tmp_path, codec, pixel_format, tolerance):
    frames = np.stack([pixels(ALPHAS)] * 2)
    path = video_files.write(tmp_path / "a.mov", frames, codec, pixels=pixel_format)
    video = read(os.fspath(path)).astype(int)
    np.testing.assert_allclose(video[:, 8, 8::16], [SHOWN] * 2, atol=tolerance)
