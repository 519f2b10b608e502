"""Data sets in their published layouts, made small."""

import json

import numpy as np
import pytest
import video_files
from PIL import Image

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.datasets import open_data, open_folder, open_images
from dynamicrafter_jax.evaluation.protocol import Data

CLASSES = ("ApplyEyeMakeup", "YoYo")


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    root = tmp_path_factory.mktemp("ucf")
    listed = []
    for label in CLASSES:
        (root / "UCF-101" / label).mkdir(parents=True)
        for i in (1, 2):
            path = f"{label}/v_{label}_g01_c0{i}.avi"
            video_files.write(root / "UCF-101" / path, video_files.moving(5), "mpeg4")
            listed.append(path)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "testlist01.txt").write_text("".join(f"{p}\n" for p in listed[::2]))
    numbered = "".join(f"{p} {i}\n" for i, p in enumerate(listed[1::2], start=1))
    (lists / "trainlist01.txt").write_text(numbered)
    return root


def test_ucf101(ucf):
    every = open_data(Data("ucf101", "all", "class"), str(ucf))
    assert list(every.names) == [f"v_{c}_g01_c0{i}" for c in CLASSES for i in (1, 2)]
    assert list(every.groups or ()) == [CLASSES[0]] * 2 + [CLASSES[1]] * 2
    video = every.read(0)
    assert video.caption == "apply eye makeup"
    assert video.file == str(ucf / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi")
    test = open_data(Data("ucf101", "test1", "none"), str(ucf))
    train = open_data(Data("ucf101", "train1", "class"), str(ucf))
    assert list(test.names) == [f"v_{c}_g01_c01" for c in CLASSES]
    assert list(train.names) == [f"v_{c}_g01_c02" for c in CLASSES]
    assert [test.read(1).caption, train.read(1).caption] == ["", "yo yo"]


def test_ucf101_says_what_is_wrong(ucf, tmp_path):
    with pytest.raises(UserError, match="no split 'test'"):
        open_data(Data("ucf101", "test", "class"), str(ucf))
    with pytest.raises(UserError, match=r"testlist02\.txt does not exist"):
        open_data(Data("ucf101", "test2", "class"), str(ucf))
    with pytest.raises(UserError, match="has no videos: give the folder with UCF-101"):
        open_data(Data("ucf101", "all", "class"), str(tmp_path))
    with pytest.raises(UserError, match="no prompts of kind 'caption'"):
        open_data(Data("ucf101", "all", "caption"), str(ucf))
    with pytest.raises(UserError, match="not a folder"):
        open_data(Data("ucf101", "all", "class"), str(tmp_path / "none"))


def msrvtt(root, **changes):
    said = {
        "videos": [
            {"video_id": "video7010", "category": 9, "split": "test"},
            {"video_id": "video7011", "category": 2, "split": "test"},
            {"video_id": "video3", "category": 2, "split": "train"},
        ],
        "sentences": [
            {"sen_id": 12, "video_id": "video7010", "caption": "later"},
            {"sen_id": 7, "video_id": "video7010", "caption": "a man  sings "},
            {"sen_id": 8, "video_id": "video3", "caption": "a dog"},
        ],
    }
    (root / "test_videodatainfo.json").write_text(json.dumps(said | changes))
    (root / "TestVideo").mkdir(exist_ok=True)
    (root / "TestVideo" / "video7010.mp4").write_bytes(b"some")
    return str(root)


def test_msrvtt(tmp_path):
    data = open_data(Data("msrvtt", "test", "first_caption"), msrvtt(tmp_path))
    assert list(data.names) == ["video7010", "video7011"]
    assert list(data.groups or ()) == ["category 9", "category 2"]
    assert data.read(0).caption == "a man sings"
    assert data.read(0).file == str(tmp_path / "TestVideo/video7010.mp4")
    with pytest.raises(UserError, match="video7011 has no caption"):
        data.read(1)
    every = open_data(Data("msrvtt", "all", "none"), str(tmp_path))
    assert list(every.names) == ["video3", "video7010", "video7011"]
    assert every.read(2).caption == ""


def test_msrvtt_says_what_is_wrong(tmp_path):
    data = Data("msrvtt", "test", "first_caption")
    with pytest.raises(UserError, match=r"has no test_videodatainfo\.json"):
        open_data(data, str(tmp_path))
    with pytest.raises(UserError, match=r"is not an MSR-VTT list: 'video_id'"):
        open_data(data, msrvtt(tmp_path, sentences=[{"sen_id": 1, "caption": "x"}]))
    with pytest.raises(UserError, match="list no videos of 'validate'"):
        open_data(Data("msrvtt", "validate", "none"), msrvtt(tmp_path))
    with pytest.raises(UserError, match="no split 'val'"):
        open_data(Data("msrvtt", "val", "none"), str(tmp_path))


def test_tfds_videos_are_named_by_number(monkeypatch):
    from dynamicrafter_jax.data.tfds import source
    from dynamicrafter_jax.data.videos import Video

    asked = []

    def opened(name, split):
        asked.append((name, split))
        return [Video("place", "apply lipstick", b"film"), Video("place", "yo yo", b"film")]

    monkeypatch.setattr(source, "open_tfds", opened)
    data = open_data(Data("ucf101", "test1", "class"), "tfds:ucf101")
    assert list(data.names) == ["test1-000000", "test1-000001"] and data.groups is None
    assert data.read(1) == Video("test1-000001", "yo yo", b"film")
    open_data(Data("ucf101", "all", "class"), "tfds:ucf101/ucf101_2")
    assert asked == [("ucf101/ucf101_1", "test"), ("ucf101/ucf101_2", "train+test")]


def test_a_folder_of_any_videos(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a caption\n")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / ".hidden.mp4").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.npy").write_bytes(b"x")
    (tmp_path / "sub" / "v.1").mkdir()
    (tmp_path / "sub" / "v.1" / "frame_0000.png").write_bytes(b"x")
    data = open_folder(str(tmp_path), captions=False)
    assert list(data.names) == ["a", "sub/b", "sub/v.1"]
    assert list(data.groups or ()) == ["", "sub", "sub"]
    assert data.read(2).file == str(tmp_path / "sub/v.1")
    captioned = open_folder(str(tmp_path), captions=True)
    assert captioned.read(0).caption == "a caption"
    with pytest.raises(UserError, match=r"b\.txt does not exist"):
        captioned.read(1)
    (tmp_path / "a.gif").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.gif and .*a\.mp4 have the same name"):
        open_folder(str(tmp_path))


ANIMATED, STILL = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02", b"RIFF\0\0\0\0WEBPVP8 "


@pytest.mark.parametrize("files, expected", [
    (["c/0.png", "c/1.png"], ["c"]),
    (["c/0.jpg", "c/1.JPEG", "c/Thumbs.db", "c/.DS_Store", "c/a.txt", "c/run.json"], ["c"]),
    (["c/0.webp", "c/1.webp"], ["c"]),
    (["c/0.moving.webp", "c/1.webp"], ["c/0.moving", "c/1"]),
    (["c/d/0.png", "c/a.mp4"], ["c/a", "c/d"]),
    (["c/a.mp4", "c/a.jpg", "c/b.mp4"], ["c/a", "c/b"]),  # pictures beside videos
    (["a.mp4", "0.png", "1.png", "2.png"], ["a"]),
    (["a.webp", "b.apng"], ["a", "b"]),
    (
        ["c/a.mp4", "c/0.png", "c/1.png"],
        r"c holds videos such as a\.mp4 and more pictures such as 0\.png",
    ),
    (["0.png", "1.png"], "if its own pictures are the frames of a video, give the folder above"),
    (["c/.0.png"], "has no videos"),
])  # fmt: skip
def test_which_folders_are_videos(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(ANIMATED if "moving" in name else STILL)
    if isinstance(expected, list):
        assert list(open_folder(str(tmp_path)).names) == expected
    else:
        with pytest.raises(UserError, match=expected):
            open_folder(str(tmp_path))


def test_the_caption_of_a_folder_of_frames(tmp_path):
    (tmp_path / "take.1").mkdir()
    (tmp_path / "take.1/0.png").write_bytes(b"x")
    (tmp_path / "take.1.txt").write_text("a caption")
    assert open_folder(str(tmp_path), captions=True).read(0).caption == "a caption"


def test_folders_without_videos_or_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match="has no videos"):
        open_folder(str(tmp_path))
    with pytest.raises(UserError, match="has no pictures"):
        open_images(str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        open_folder(str(tmp_path / "none"))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    assert list(open_images(str(tmp_path)).names) == ["x"]
