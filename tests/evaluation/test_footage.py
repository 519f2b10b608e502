"""Any kind of video gives the same frames."""

import hashlib

import numpy as np
import pytest
import video_files
from PIL import Image

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.footage import inspect, read_frames
from dynamicrafter_jax.media import write_video

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
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations)
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
