"""Folders of frames, in natural order."""

import random
from pathlib import Path

import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.frames import in_natural_order, list_frames

ORDERS = {
    "counted": [f"frame_{i}.png" for i in range(16)],
    "numbers alone": [f"{i}.png" for i in range(1, 17)],
    "padded": [f"frame_{i:04d}.png" for i in range(9997, 10004)],
    "padded now and then": ["f1.png", "f02.png", "f3.png", "f010.png", "f11.png"],
    "dashes": [f"frame-{i:04d}.jpg" for i in (9, 10, 11, 100)],
    "seconds": [f"f_{i / 2}s.png" for i in range(24)],
    "seconds of any length": [f"f_{i / 25:g}s.png" for i in range(60)],
    "tenths that count": [f"take1.{i}.png" for i in range(1, 21)],
    "versions": ["v1.2.9.png", "v1.2.10.png", "v1.11.1.png", "v2.0.0.png"],
    "several numbers": [f"shot{i}_frame{j}.png" for i in (2, 10) for j in (1, 9, 10)],
    "first of several": [f"{i}_of_120_at_30fps.png" for i in (1, 2, 11, 100)],
    "times": ["2024-1-9 9.59.08.png", "2024-1-9 9.59.10.png", "2024-1-10 9.00.00.png"],
    "cases": ["Frame_1.png", "frame_2.PNG", "FRAME_3.png", "frame_10.Png"],
    "copies": ["frame.png", "frame (2).png", "frame (10).png"],
    "kinds": ["1.png", "2.jpg", "3.JPEG", "4.webp", "10.bmp", "11.tiff"],
    "letters": ["a.png", "B.png", "c.png"],
    "accents in two ways": ["\u00e9t\u00e9_1.png", "e\u0301te\u0301_2.png", "\u00e9t\u00e9_3.png"],
    "other digits": ["f１.png", "f2.png", "f１０.png"],
    "ties": ["f01.png", "f1.png", "f2.png"],
    "extensions with digits": ["a1.jp2", "a2.jp2", "a10.jp2"],
}


@pytest.mark.parametrize("names", ORDERS.values(), ids=list(ORDERS))
def test_natural_order(names: list[str]):
    for seed in range(3):
        shuffled = random.Random(seed).sample(names, len(names))
        assert in_natural_order(shuffled) == names


def test_only_pictures_are_frames(tmp_path: Path):
    strays = [
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "caption.txt",
        "run.json",
        "._1.png",
        "x.npy",
    ]
    for name in ["10.png", "9.jpg", *strays]:
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in list_frames(tmp_path)] == ["9.jpg", "10.png"]


@pytest.mark.parametrize("names, message", [
    (["1.png", "1.jpg", "2.png"], r"has the frames 1\.jpg and 1\.png with the same name"),
    (["rgb_1.png", "depth_1.png"], r"two series, such as depth_1\.png and rgb_1\.png"),
])  # fmt: skip
def test_folders_that_are_not_clear(tmp_path: Path, names: list[str], message: str):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        list_frames(tmp_path)
