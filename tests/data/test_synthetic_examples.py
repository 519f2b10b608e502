"""Drawn clips as training takes them, and as files."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.draws import ClipSettings
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.synthetic import (
    Motion,
    Renderer,
    SyntheticExamples,
    draw_scene,
    trajectory,
)
from dynamicrafter_jax.data.synthetic.clip_sets import ClipSet, write_folder
from dynamicrafter_jax.data.synthetic.tfds import SyntheticMotion, prepare
from dynamicrafter_jax.data.tfds.source import open_tfds
from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.tokenizer import tokenize

ROOT = Path(__file__).parents[2]
SETTINGS = ClipSettings(
    height=24,
    width=32,
    num_frames=4,
    min_stride=1,
    max_stride=1,
    fs="fps",
    condition_dropout=0.1,
    random_frame=True,
    context_length=77,
)


CHOICES: tuple[tuple[Motion, ...] | None, ...] = (None, ("clockwise",), ("anticlockwise",))


class Broken:
    """A source of one video that can't be read: its sample is blank, with every array."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Video:
        raise UserError("broken")


def test_samples_have_the_arrays_of_those_of_videos():
    expected = VideoExamples(Broken(), SETTINGS, 0)(0)
    for split in ("train", "validation", "test"):
        found = SyntheticExamples(SETTINGS, 0, split)(7)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert (name, array.dtype, array.shape) == (
                name,
                expected[name].dtype,
                expected[name].shape,
            )
        assert found["weight"] == 1 and found["problem"] == b"" and found["index"] == 7


def test_samples_show_their_clips():
    for index in range(12):
        found = SyntheticExamples(SETTINGS, 3)(index)
        scene = draw_scene(int(found["item"]))
        frames = Renderer(scene, 24, 32).frames(trajectory(scene, 4))
        np.testing.assert_array_equal(found["video"], frames)
        assert found["fs"] == scene.fps
        kept = tokenize([scene.caption], 77)[0]
        assert found["ids"].tolist() in (kept.tolist(), tokenize([""], 77)[0].tolist())
        assert 0 <= found["frame"] < 4


def test_of_few_frames_those_are_drawn_that_were_chosen():
    for index in range(6):
        whole = SyntheticExamples(SETTINGS, 3)(index)
        some = SyntheticExamples(replace(SETTINGS, frames=2), 3)(index)
        np.testing.assert_array_equal(some["video"], whole["video"][some["places"]])
        assert some["places"][some["frame"]] == whole["frame"]


def test_a_stride_takes_every_so_manyeth_frame():
    strided = replace(SETTINGS, min_stride=3, max_stride=3)
    found = SyntheticExamples(strided, 3)(5)
    scene = draw_scene(int(found["item"]))
    frames = Renderer(scene, 24, 32).frames(trajectory(scene, 12))
    starts = [i for i in range(3) if np.array_equal(found["video"], frames[i : i + 10 : 3])]
    assert starts
    assert found["fs"] == scene.fps // 3


def test_conditions_are_dropped_as_often_as_said():
    samples = SyntheticExamples(replace(SETTINGS, height=4, width=4, num_frames=2), 0)
    empty = tokenize([""], 77)[0]
    drawn = [samples(index) for index in range(150)]
    no_text = np.array([np.array_equal(sample["ids"], empty) for sample in drawn])
    no_image = np.array([sample["keep_image"] == 0 for sample in drawn])
    for share, expected in ((no_text, 0.2), (no_image, 0.2), (no_text & no_image, 0.1)):
        assert share.mean() == pytest.approx(expected, abs=0.08)
    assert {int(sample["frame"]) for sample in drawn} == {0, 1}


def test_some_motions_can_be_shown_more_often():
    def drawn(**chosen: Any) -> list[dict[str, Any]]:
        small = replace(SETTINGS, height=8, width=8, num_frames=2, condition_dropout=0.0)
        samples = SyntheticExamples(small, 3, **chosen)
        return [dict(samples(index)) for index in range(100)]

    turns = ("clockwise", "anticlockwise")
    seen = []
    for sample, usual in zip(drawn(motions=turns, motions_share=0.6), drawn(), strict=True):
        scenes = [draw_scene(int(sample["item"]), motions=motions) for motions in CHOICES]
        captions = [tokenize([scene.caption], 77)[0].tolist() for scene in scenes]
        seen.append(captions.index(sample["ids"].tolist()))
        frames = Renderer(scenes[seen[-1]], 8, 8).frames(trajectory(scenes[seen[-1]], 2))
        np.testing.assert_array_equal(sample["video"], frames)
        if seen[-1] == 0:
            assert all(np.array_equal(sample[name], usual[name]) for name in usual)
    for chosen in (1, 2):
        assert seen.count(chosen) == pytest.approx(30, abs=14)
    assert seen.count(0) == pytest.approx(40, abs=14)


def test_seeds_have_clips_of_their_own_but_for_tests():
    def numbers(seed: int, split: str) -> set[int]:
        small = replace(SETTINGS, height=4, width=4, num_frames=1)
        return {int(SyntheticExamples(small, seed, split)(index)["item"]) for index in range(20)}

    assert len(numbers(0, "train") | numbers(1, "train")) == 40
    for split in ("validation", "test"):
        assert numbers(0, split) == numbers(1, split) == set(range(20))


def test_samples_are_sent_to_workers_as_settings():
    samples = SyntheticExamples(SETTINGS, 4)
    sent = pickle.dumps(samples)
    assert len(sent) < 1000
    again, first = pickle.loads(sent)(9), samples(9)
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_a_config_names_the_split():
    config = load_config("i2v_512")
    config.sampling.height = config.sampling.width = 16
    config.data.fs = "fps"
    samples = open_examples(config, "synthetic:test", 5, training=False)
    assert isinstance(samples, SyntheticExamples)
    found = samples(2)
    assert found["item"] == 2 and found["keep_image"] == 1
    assert found["video"].shape == (16, 16, 16, 3)
    config.data.frames = 4
    assert open_examples(config, "synthetic:test", 5)(2)["video"].shape == (4, 16, 16, 3)
    whole = open_examples(config, "synthetic:test", 5, training=False)(2)
    np.testing.assert_array_equal(whole["video"], found["video"])
    config.data.frames = None
    config.data.motions, config.data.motions_share = ("left",), 1.0
    moved = open_examples(config, "synthetic:test", 5)(2)
    assert not np.array_equal(moved["video"], found["video"])
    np.testing.assert_array_equal(
        open_examples(config, "synthetic:test", 5, training=False)(2)["video"], found["video"]
    )
    with pytest.raises(UserError, match=r"data\.motions is for drawn clips alone, .* videos: set"):
        open_examples(config, "videos", 0)
    config.data.motions, config.data.motions_share = (), 0.0
    assert found["ids"].tolist() == tokenize([draw_scene(2, "test").caption], 77)[0].tolist()
    with pytest.raises(UserError, match="synthetic:new is unknown: choose from synthetic:train, s"):
        open_examples(config, "synthetic:new", 0)
    with pytest.raises(UserError, match=r"no videos to train on.*synthetic:train"):
        open_examples(config, None, 0)
    with pytest.raises(UserError, match="synthetic:train has no files"):
        open_source("synthetic:train")


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"train\.seed is -1"):
        SyntheticExamples(SETTINGS, -1)
    with pytest.raises(UserError, match=r"data\.fs is 'stride': set it to 'fps' for drawn clips"):
        SyntheticExamples(replace(SETTINGS, fs="stride"), 0)
    with pytest.raises(UserError, match=r"data\.motions has 'spin': choose from left, right"):
        SyntheticExamples(SETTINGS, 0, motions=("left", "spin"))
    for motions, share in (((), 0.5), (("left",), 1.5), (("left",), 0.0)):
        with pytest.raises(UserError, match=rf"data\.motions_share {share}: give motions and a"):
            SyntheticExamples(SETTINGS, 0, motions=motions, motions_share=share)
    with pytest.raises(UserError, match="clips is 0: give 1 or more"):
        ClipSet(clips=0)


def test_a_tfds_data_set_holds_what_is_true(tmp_path):
    folder = prepare(tmp_path, ClipSet("test", clips=3, height=16, width=24, num_frames=5))
    assert folder == tmp_path / "synthetic_motion" / "1.0.0"
    builder: Any = tfds.builder_from_directory(folder)
    source = builder.as_data_source("test")
    assert len(source) == 3
    for number in range(3):
        scene, found = draw_scene(number, "test"), source[number]
        assert found["number"] == number and found["fps"] == scene.fps
        assert found["caption"].decode() == scene.caption
        assert tuple(motion.decode() for motion in found["motions"]) == scene.motions
        poses = trajectory(scene, 5)
        for name, values in poses._asdict().items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6)
        with open_video(found["video"], "clip") as reader:
            assert reader.fps == scene.fps
            frames = reader.read(range(5), 16, 24)
        np.testing.assert_array_equal(frames, Renderer(scene, 16, 24).frames(poses))
    # Training takes it as any other data set.
    video = open_tfds("synthetic_motion", "test", data_dir=tmp_path)[1]
    assert (video.name, video.caption) == ("test_000001", draw_scene(1, "test").caption)
    with pytest.raises(UserError, match="exists: give another folder"):
        prepare(tmp_path, ClipSet(clips=1))


def test_tfds_finds_the_builder_by_its_name(tmp_path):
    builder = tfds.builder("synthetic_motion", data_dir=tmp_path)
    assert isinstance(builder, SyntheticMotion)


def test_a_folder_of_clips_is_a_source_of_videos(tmp_path):
    write_folder(tmp_path / "clips", ClipSet(clips=2, height=32, width=32, num_frames=4))
    videos = open_source(str(tmp_path / "clips"))
    assert [videos[i].caption for i in range(2)] == [draw_scene(i).caption for i in range(2)]
    with open_video(videos[1].file, "clip") as reader:
        frames = reader.read(range(4), 32, 32)
        assert reader.fps == draw_scene(1).fps
    exact = Renderer(draw_scene(1), 32, 32).frames(trajectory(draw_scene(1), 4))
    assert np.abs(frames.astype(float) - exact).mean() < 8
    with pytest.raises(UserError, match="not empty"):
        write_folder(tmp_path / "clips", ClipSet(clips=1))


def test_the_command_writes_a_folder_or_says_what_is_wrong(tmp_path):
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dynamicrafter_jax.data.synthetic", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(f"--output={tmp_path / 'out'}", "--clips=2", "--height=16", "--width=16")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out'}: 2 clips" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 4
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("error: give --data_dir for a TFDS data set, or --output")
