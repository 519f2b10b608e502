import os
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from data.listed import Listed, encoded
from storage import full_disk, memory_bucket

from dynamicrafter_jax.data import prepare as command
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.draws import ClipSettings
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.tfds import builder
from dynamicrafter_jax.data.tfds.builder import prepare
from dynamicrafter_jax.data.tfds.source import open_tfds
from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import write_video

ROOT = Path(__file__).parents[2]


class NoTensorFlow(MetaPathFinder):
    """Makes TensorFlow impossible to import, whether or not it is installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_what_is_prepared_is_read_back_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow(), *sys.meta_path])
    monkeypatch.setattr(builder, "_VIDEOS_A_SHARD", 2)
    source = encoded(5)
    folder = prepare(source, "clips", tmp_path / "data")
    assert os.fspath(folder) == f"{tmp_path}/data/clips/1.0.0"
    assert sorted(file.name for file in folder.iterdir()) == [
        *(f"clips-train.array_record-0000{shard}-of-00003" for shard in range(3)),
        "dataset_info.json",
        "features.json",
    ]
    assert [place.name for place in (tmp_path / "data").rglob("*") if place.is_dir()] == [
        "clips",
        "1.0.0",
    ]
    theirs: Any = tfds.data_source("clips", data_dir=tmp_path / "data", split="train")
    assert [
        Video(example["name"].decode(), example["caption"].decode(), example["video"])
        for example in theirs
    ] == source.videos

    ours = open_tfds("clips", data_dir=tmp_path / "data")
    assert len(ours) == 5
    assert [ours[i] for i in range(5)] == source.videos
    assert len(open_tfds("clips", "train[:40%]", data_dir=tmp_path / "data")) == 2
    assert open_tfds(f"{tmp_path}/data/clips")[4] == source.videos[4]
    monkeypatch.chdir(tmp_path)
    assert open_tfds("data/clips")[4] == source[4]
    monkeypatch.setenv("TFDS_DATA_DIR", f"{tmp_path}/data")
    assert open_source("tfds:clips")[4] == source.videos[4]


def test_a_file_that_cannot_be_read_keeps_its_place(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "whole.mp4").write_bytes(b"whole")
    names = ["none.mp4", "empty.mp4", "whole.mp4"]
    videos = [Video(name, "a dog", os.fspath(tmp_path / name)) for name in names]
    videos.append(Video("bytes.mp4", "a dog", b""))
    with pytest.warns(UserWarning, match="its place is kept, empty") as warned:
        prepare(Listed(videos), "clips", tmp_path)
    assert [str(warning.message).split(maxsplit=1)[0] for warning in warned] == [
        os.fspath(tmp_path / "none.mp4"),
        os.fspath(tmp_path / "empty.mp4"),
        "bytes.mp4",
    ]
    ours = open_tfds("clips", data_dir=tmp_path)
    assert [ours[i].file for i in range(4)] == [b"", b"", b"whole", b""]


def test_training_sees_the_same_from_a_table_and_from_its_data_set(tmp_path, capsys):
    rng = np.random.default_rng(1)
    for number in (1, 2):
        video = np.kron(rng.integers(0, 256, (9, 4, 4, 3)), np.ones((1, 16, 16, 1))).astype("u1")
        write_video(tmp_path / f"videos/page/{number}.mp4", video, fps=12)
    table = tmp_path / "train.csv"
    table.write_text("videoid,page_dir,name\n1,page,a dog\n2,page,a cat\n3,page,not there\n")
    with pytest.warns(UserWarning, match="3.mp4 does not exist"):
        command.run(os.fspath(table), None, os.fspath(tmp_path / "data"), "pets")
    folder = tmp_path / "data" / "pets"
    assert capsys.readouterr().out.startswith(f"{folder}/1.0.0: 3 videos, ")
    settings = ClipSettings(
        height=32, width=64, num_frames=4, min_stride=1, max_stride=3, fs="fps",
        condition_dropout=0.1, random_frame=True, context_length=77,
    )  # fmt: skip
    theirs = VideoExamples(open_source(os.fspath(table)), settings, seed=3)
    ours = VideoExamples(open_source(f"tfds:{folder}"), settings, seed=3)
    weights = []
    for index in range(6):
        example, other = ours(index), theirs(index)
        problem, other_problem = example.pop("problem"), other.pop("problem")
        assert bool(problem) == bool(other_problem)
        assert example.keys() == other.keys()
        for name in example:
            np.testing.assert_array_equal(example[name], other[name])
        weights.append(float(example["weight"]))
    assert weights.count(0) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, "data", "x"), "no --source: see --help"),
        (("a.csv", None, None, "x"), "no --data_dir: see --help"),
        (("a.csv", None, "data", None), "no --name: see --help"),
        (("a.csv", None, "data", "x"), "a.csv does not exist"),
    ],
)
def test_command_without_what_it_needs(arguments, message):
    with pytest.raises(UserError, match=message):
        command.run(*arguments)


@pytest.mark.parametrize("name", ["", "Clips", "2m", "web-vid", "../clips", "clips:1.0.0"])
def test_names_that_tfds_does_not_take(tmp_path, name):
    with pytest.raises(UserError, match="can't name a data set: give a lower-case letter"):
        prepare(encoded(1), name, tmp_path)


def test_nothing_is_replaced_or_made_of_nothing(tmp_path):
    prepare(encoded(2), "clips", tmp_path)
    with pytest.raises(UserError, match=r"clips/1.0.0 exists: give another name, or remove it$"):
        prepare(encoded(3), "clips", tmp_path)
    assert len(open_tfds("clips", data_dir=tmp_path)) == 2
    with pytest.raises(UserError, match=r"^there are no videos to prepare$"):
        prepare(Listed([]), "none", tmp_path)


def test_an_interruption_leaves_nothing(tmp_path):
    class Interrupted(Listed):
        def __getitem__(self, index: int) -> Video:
            if index == 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(encoded(40).videos), "clips", tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


KILLED = """
import os, signal
from dynamicrafter_jax.data.tfds import builder
from dynamicrafter_jax.data.videos import Video

class Deadly:
    def __len__(self): return 40
    def __getitem__(self, index):
        if index == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return Video(f"{index}.mp4", "", b"video")

builder._VIDEOS_A_SHARD = 4
builder.prepare(Deadly(), "clips", "data")
"""


@pytest.mark.slow
def test_what_a_killed_preparation_left_is_no_data_set(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        check=False,
    )
    assert killed.returncode == -9
    assert list((tmp_path / "data").rglob("*.array_record*"))
    with pytest.raises(UserError, match="holds no TFDS data set clips"):
        open_tfds("clips", data_dir=tmp_path / "data")
    prepare(encoded(2), "clips", tmp_path / "data")
    assert len(open_tfds("clips", data_dir=tmp_path / "data")) == 2


def test_a_full_disk_leaves_nothing(tmp_path):
    videos = [Video("a.mp4", "", os.urandom(100_000))] * 9
    with (
        full_disk(300_000),
        pytest.raises(UserError, match=r"clips/1.0.0 can't be written: .*disk"),
    ):
        prepare(Listed(videos), "clips", tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_data_sets_may_be_remote(tmp_path, monkeypatch):
    store: dict[str, Any] = memory_bucket(monkeypatch)
    source = encoded(3)
    prepare(source, "clips", "gs://bucket/data")
    names = {os.path.basename(name): name for name in store}
    assert names.keys() >= {"features.json", "dataset_info.json"}
    assert not [name for name in store if "incomplete" in name]
    shard = tmp_path / "shard"
    shard.write_bytes(store[names["clips-train.array_record-00000-of-00001"]].getvalue())
    records = ArrayRecordReader(os.fspath(shard)).read_all()
    for video, record in zip(source.videos, records, strict=True):
        assert isinstance(video.file, bytes)
        assert video.file in record
