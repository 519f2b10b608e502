import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax.app.results import ResultStore, UploadStore, slug
from dynamicrafter_jax.media import read_video


def clip(level: int) -> np.ndarray:
    return np.full((3, 16, 16, 3), level, np.uint8)


def test_a_video_is_stored_with_a_frame_of_it(tmp_path):
    stored = ResultStore(tmp_path / "results", 5).add(clip(90), 4, "The camera pans!")
    assert stored.exists and stored.video.name == "the-camera-pans.mp4"
    frames, fps = read_video(stored.video)
    assert frames.shape == (3, 16, 16, 3) and fps == 4
    np.testing.assert_array_equal(np.asarray(Image.open(stored.poster)), clip(90)[0])


def test_only_the_newest_are_kept(tmp_path):
    store = ResultStore(tmp_path, 2)
    first, second, third = (store.add(clip(level), 8, "same name") for level in (1, 2, 3))
    assert not first.exists and second.exists and third.exists
    assert len(list(tmp_path.iterdir())) == 2
    store.remove(third)
    assert not third.exists and store.add(clip(4), 8, "x").exists and second.exists


def test_a_store_takes_over_what_is_there(tmp_path):
    old = [ResultStore(tmp_path, 9).add(clip(level), 8, "x") for level in range(3)]
    for age, stored in enumerate(old):
        os.utime(stored.video.parent, (1000 + age, 1000 + age))
    ResultStore(tmp_path, 3).add(clip(9), 8, "x")
    assert [stored.exists for stored in old] == [False, True, True]


def test_folders_cannot_be_guessed(tmp_path):
    store = ResultStore(tmp_path, 50)
    folders = {store.add(clip(0), 8, "x").video.parent.name for _ in range(5)}
    assert len(folders) == 5 and all(len(name) >= 22 for name in folders)  # 128 bits


@pytest.mark.parametrize(
    "words, name",
    [
        ("The camera zooms in, seed 3", "the-camera-zooms-in-seed-3"),
        ("../../etc/passwd\0", "etc-passwd"),
        ("日本", "video"),
        ("", "video"),
        ("x" * 500, "x" * 60),
    ],
)
def test_names_of_files_are_plain(words, name):
    assert slug(words) == name


def upload(folder: Path, name: str, size: int, age: float) -> Path:
    (folder / name).mkdir()
    (folder / name / "picture.png").write_bytes(bytes(size))
    os.utime(folder / name, (1e9 - age, 1e9 - age))
    return folder / name


def test_the_oldest_uploads_make_room(tmp_path):
    others = upload(tmp_path, "results", 10_000, 1000)
    store = UploadStore(tmp_path, max_bytes=1000, max_files=9)
    old, middle, new = (
        upload(tmp_path, name, 400, age) for name, age in (("b", 30), ("c", 20), ("a", 10))
    )
    store.trim()
    assert not old.exists() and middle.exists() and new.exists() and others.exists()
    stray = tmp_path / "stray.tmp"
    stray.write_bytes(bytes(5000))
    os.utime(stray, (1, 1))
    store.trim()
    assert not stray.exists() and new.exists()


def test_many_small_uploads_make_room_too(tmp_path):
    store = UploadStore(tmp_path, max_bytes=10**9, max_files=3)
    uploads = [upload(tmp_path, str(age), 1, age) for age in (50, 40, 30, 20, 10)]
    store.trim()
    assert [place.exists() for place in uploads] == [False, False, True, True, True]
