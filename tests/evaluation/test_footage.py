"""Any kind of video gives the same frames."""

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import video_files
from PIL import Image

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.footage import inspect, read_frames
from dynamicrafter_jax.media import read_picture, write_video

COUNT = 20
INDICES = [1, 4, 7, 19]
SIZE = video_files.HEIGHT, video_files.WIDTH


def written(folder, kind):
    """Frames that show their number, in a file of any kind."""
    frames = video_files.numbered(COUNT)
    if kind == ".npy":
        np.save(folder / "a.npy", frames)
        return str(folder / "a.npy")
    path = folder / ("a" if kind == "folder" else f"a{kind}")
    write_video(path, frames, 5)
    return str(path)


@pytest.mark.parametrize("kind", [".mp4", ".gif", ".webp", ".npy", "folder"])
def test_frames_by_number(tmp_path, kind):
    path = written(tmp_path, kind)
    footage = inspect(path, "a")
    assert footage.frames == COUNT
    expected = None if kind in (".npy", "folder") else 5.0
    assert footage.fps == expected if expected is None else abs((footage.fps or 0) - 5) < 1e-6
    assert video_files.numbers(read_frames(path, "a", INDICES, *SIZE)) == INDICES
    small = read_frames(path, "a", INDICES, 16, 16)
    assert small.shape == (4, 16, 16, 3)
    if kind != "folder":
        with open(path, "rb") as file:
            assert footage.sha256 == hashlib.sha256(file.read()).hexdigest()


DURATIONS = [  # a kind, how long its frames stay in milliseconds, and their rate
    (".webp", [20, 200, 200, 200], 3 / 0.42),
    (".gif", [20, 200, 200, 200], 3 / 0.42),
    (".apng", [20, 200, 200, 200], 3 / 0.42),
    (".webp", [40, 1000], 25.0),  # how long the last one stays does not count
    (".gif", [40, 1000], 25.0),
    (".webp", [33, 33, 34, 33], 30.0),
    (".webp", [125], None),
    (".webp", [0, 0], None),
]


@pytest.mark.parametrize("kind, durations, rate", DURATIONS)
def test_rates_of_animations_are_of_all_frames(tmp_path, kind, durations, rate):
    frames = [Image.fromarray(frame) for frame in video_files.moving(len(durations))]
    path = tmp_path / f"a{kind}"
    more = {"save_all": True, "append_images": frames[1:], "duration": durations}
    frames[0].save(path, "PNG" if kind == ".apng" else None, **more)
    footage = inspect(str(path), "a")
    assert footage.frames == len(durations)
    assert footage.fps == (rate if rate is None else pytest.approx(rate, rel=1e-6))


def test_a_folder_is_hashed_by_its_pictures(tmp_path):
    path = written(tmp_path, "folder")
    before = inspect(path, "a")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a/frame_0003.png")
    assert inspect(path, "a").sha256 != before.sha256
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a/frame_0004.png")
    with pytest.raises(UserError, match="frames of 64 x 48 and 32 x 32 pixels"):
        read_frames(path, "a", [1, 4], 16, 16)


def test_a_picture_is_one_frame(tmp_path):
    frame = video_files.moving(1)[0]
    Image.fromarray(frame).save(tmp_path / "a.png")
    assert inspect(str(tmp_path / "a.png"), "a").frames == 1
    assert np.array_equal(read_frames(str(tmp_path / "a.png"), "a", [0], *SIZE)[0], frame)


@pytest.mark.parametrize("kind", [".mp4", ".gif", ".webp", ".npy"])
def test_broken_files_are_named(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    path.write_bytes(b"nothing of this kind")
    with pytest.raises(UserError, match=r"a\..* is "):
        inspect(str(path), str(path))


def test_arrays_of_another_kind_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 32, 32, 3), np.float32))
    with pytest.raises(UserError, match=r"is float32 \(4, 32, 32, 3\)"):
        inspect(str(tmp_path / "a.npy"), "a")


NAMES = {
    "counted": [f"frame_{i}.png" for i in range(COUNT)],
    "numbers alone": [f"{i}.jpg" for i in range(1, COUNT + 1)],
    "seconds": [f"f_{i / 2}s.png" for i in range(COUNT)],
    "padded": [f"Frame-{i:04d}.webp" for i in range(8, COUNT + 8)],
    "kinds": [f"{i}{'.png' if i % 2 else '.JPG'}" for i in range(COUNT)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
def test_frames_of_a_folder_are_in_natural_order(tmp_path, names):
    folder = tmp_path / "a"
    folder.mkdir()
    for name, frame in zip(names, video_files.numbered(COUNT), strict=True):
        Image.fromarray(frame).save(folder / name)
    for stray in (".DS_Store", "Thumbs.db", "a.txt", "._frame_0.png"):
        (folder / stray).write_bytes(b"no picture")
    assert inspect(str(folder), "a").frames == COUNT
    frames = read_frames(str(folder), "a", range(COUNT), *SIZE)
    assert video_files.numbers(frames) == list(range(COUNT))


def test_frames_of_many_sizes_are_named(tmp_path):
    path = written(tmp_path, "folder")
    Image.new("RGB", (32, 40)).save(tmp_path / "a/frame_0004.png")
    with pytest.raises(UserError, match=r"64 x 48 and 32 x 40 pixels, frame_0003.* frame_0004"):
        inspect(path, "a")
    with pytest.raises(UserError, match="20 frames, but no number 20"):
        read_frames(path, "a", [20], *SIZE)


def bars(shown, alphas):
    """A picture of one colour, in bars that are opaque, transparent and in between."""
    alpha = np.repeat(np.uint8(alphas), SIZE[1] // len(alphas))
    pixels = np.empty((*SIZE, 4), np.uint8)
    pixels[...] = (*shown, 0)
    pixels[..., 3] = alpha
    return pixels


def on_white(pixels):
    colours, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    return colours * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", [".webp", ".apng", ".gif", "folder", "folder of WebP"])
def test_transparency_is_on_white(tmp_path, kind):
    """Whole frames that replace each other, with nothing, half and all of a colour."""
    alphas = [0, 255, 0, 255] if kind == ".gif" else [0, 51, 102, 255]
    frames = [bars((200, 100, 0), alphas), bars((0, 10, 250), alphas[::-1])]
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / ("a" if kind.startswith("folder") else f"a{kind}")
    if kind.startswith("folder"):
        path.mkdir()
        for i, picture in enumerate(pictures):
            picture.save(path / (f"{i}.webp" if "WebP" in kind else f"{i}.png"), lossless=True)
    else:
        pictures[0].save(
            path,
            "PNG" if kind == ".apng" else None,
            save_all=True,
            append_images=pictures[1:],
            duration=100,
            disposal=1 if kind == ".apng" else 2,
            lossless=True,
        )
    read = read_frames(str(path), "a", [0, 1], *SIZE)
    np.testing.assert_allclose(read, [on_white(frame) for frame in frames], atol=1)
    if not kind.startswith("folder"):
        np.testing.assert_array_equal(read_picture(path), read[0])


def webp_frame(colour, left, width, *, to_background):
    """A chunk of an animated WebP: a part of the canvas, of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, SIZE[0]), colour).save(buffer, "WEBP", lossless=True)

    def three_bytes(number):
        return struct.pack("<I", number)[:3]

    numbers = (left // 2, 0, width - 1, SIZE[0] - 1, 100)
    data = b"".join(map(three_bytes, numbers)) + bytes([to_background]) + buffer.getvalue()[12:]
    return b"ANMF" + struct.pack("<I", len(data)) + data


def test_what_frames_leave_free_is_white(tmp_path):
    header = struct.pack("<4sIBxxxHBHB", b"VP8X", 10, 2, SIZE[1] - 1, 0, SIZE[0] - 1, 0)
    body = b"".join((
        b"WEBP", header, struct.pack("<4sIIH", b"ANIM", 6, 0, 0),
        webp_frame("red", 0, 64, to_background=True), webp_frame("blue", 32, 32, to_background=0),
    ))  # fmt: skip
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    second = read_frames(str(path), "a", [1], *SIZE)[0]
    assert np.all(second[:, :32] == 255) and np.all(second[:, 32:] == (0, 0, 255))


def test_the_case_of_a_transparent_animation():
    path = str(Path(__file__).parent.parent / "cases/transparent.webp")
    frames = read_frames(path, "a", range(16), 64, 64)
    colours = np.unique(frames.reshape(-1, 3), axis=0)
    assert colours.tolist() == [[200, 30, 30], [255, 255, 255]]
