"""Samples from real files: the right frames, prompts and conditions, and no video swapped."""

import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import video_files

from dynamicrafter_jax.data.clips import PROBLEM_BYTES, ClipSettings, Example, VideoExamples
from dynamicrafter_jax.data.draws import draw_clip, video_of
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.videos import Video, VideoSource
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.tokenizer import tokenize

SETTINGS = ClipSettings(
    height=32,
    width=48,
    num_frames=4,
    min_stride=1,
    max_stride=6,
    fs="fps",
    condition_dropout=0.2,
    random_frame=True,
    context_length=77,
)
FRAMES = {"a": 40, "b": 25, "c": 12, "d": 4}
RATES = {"a": 30, "b": 25, "c": 8, "d": 24}


class Listed:
    """A source of these videos."""

    def __init__(self, *videos: Video) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Video:
        return self.videos[index]


class Failing(Listed):
    """A source that can't say which video it has."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Video("a", "", "a.mp4"))
        self.error = error

    def __getitem__(self, index: int) -> Video:
        raise self.error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, count in FRAMES.items():
        frames = video_files.numbered(count)
        options = "x264-params=keyint=10"
        video_files.write(folder / f"{name}.mp4", frames, options=options, rate=RATES[name])
        (folder / f"{name}.txt").write_text(f"the video {name}")
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> VideoSource:
    return open_source(os.fspath(folder))


def test_samples_are_what_was_drawn(source: VideoSource):
    examples = VideoExamples(source, SETTINGS, seed=3)
    assert len(examples) == 4
    dropped = set()
    for index in range(36):
        example = examples(index)
        item = video_of(3, index, 4)
        name = "abcd"[item]
        draw = draw_clip(3, index, FRAMES[name], SETTINGS)
        assert example["index"] == index and example["item"] == item
        assert example["weight"] == 1 and example["problem"] == b""
        assert video_files.numbers(example["video"]) == list(draw.frames)
        assert example["frame"] == draw.frame
        assert example["keep_image"] == draw.keep_image
        assert example["fs"] == RATES[name] // draw.stride
        prompt = f"the video {name}" if draw.keep_text else ""
        np.testing.assert_array_equal(example["ids"], tokenize([prompt])[0])
        dropped.add((draw.keep_text, draw.keep_image))
    assert len(dropped) == 4


def test_fs_can_be_the_stride(source: VideoSource):
    settings = replace(SETTINGS, fs="stride", min_stride=3, max_stride=3)
    examples = [VideoExamples(source, settings, seed=3)(index) for index in range(8)]
    for example in examples:
        numbers = video_files.numbers(example["video"])
        assert example["fs"] == numbers[1] - numbers[0]
    assert {float(example["fs"]) for example in examples} == {1, 3}  # 1: the video of 4 frames


def layout(example: Example) -> dict[str, tuple]:
    return {name: (array.dtype.str, array.shape) for name, array in example.items()}


def test_all_samples_have_the_same_arrays(source: VideoSource):
    good = VideoExamples(source, SETTINGS, seed=3)(0)
    broken = VideoExamples(Listed(Video("x", "", "/none.mp4")), SETTINGS, seed=3)(0)
    expected = {
        "index": ("<i8", ()),
        "item": ("<i8", ()),
        "weight": ("<f4", ()),
        "fs": ("<f4", ()),
        "frame": ("<i4", ()),
        "keep_image": ("<f4", ()),
        "ends": ("|b1", ()),
        "video": ("|u1", (4, 32, 48, 3)),
        "ids": ("<i4", (77,)),
        "problem": (f"|S{PROBLEM_BYTES}", ()),
    }
    assert layout(good) == layout(broken) == expected


def test_of_few_frames_those_are_read_that_were_drawn(source: VideoSource):
    some = replace(SETTINGS, frames=3, ends_share=0.5)
    examples, ends = VideoExamples(source, some, seed=3), set()
    for index in range(12):
        example, whole = examples(index), VideoExamples(source, SETTINGS, seed=3)(index)
        np.testing.assert_array_equal(example["video"], whole["video"][example["places"]])
        conditions = example["video"][example["frame"]], whole["video"][whole["frame"]]
        np.testing.assert_array_equal(*conditions)
        assert {0, 3} <= set(example["places"].tolist()) or not example["ends"]
        ends.add(bool(example["ends"]))
    assert ends == {False, True}
    broken = VideoExamples(Listed(Video("x", "", "/none.mp4")), some, seed=3)(0)
    assert layout(broken) == layout(examples(0))


def test_samples_are_the_same_after_a_journey(source: VideoSource):
    """As workers get them, and whichever were made before."""
    examples = VideoExamples(source, SETTINGS, seed=3)
    arrived = pickle.loads(pickle.dumps(examples))
    for index in (17, 3, 1000, 3):
        one, other = examples(index), arrived(index)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_broken_videos_keep_their_place(folder: Path, tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    short = video_files.write(tmp_path / "short.mp4", video_files.numbered(3))
    whole = folder / "a.mp4"
    cut = whole.read_bytes()[:-300]
    videos = {
        "gone": Video("gone", "", os.fspath(tmp_path / "gone.mp4")),
        "text": Video("text", "", os.fspath(tmp_path / "text.mp4")),
        "short": Video("short", "", os.fspath(short)),
        "empty": Video("empty", "", b""),
        "cut": Video("cut", "", cut),
        "fine": Video("fine", "a dog", whole.read_bytes()),
    }
    problems = {
        "gone": "gone can't be read: No such file or directory",
        "text": "text is truncated or not a video (Invalid data found when processing input)",
        "short": "short has 3 frames, but 4 are needed",
        "empty": "empty is empty (0 bytes)",
        "cut": "cut is",
    }
    examples = VideoExamples(Listed(*videos.values()), SETTINGS, seed=0)
    for index in range(12):
        example = examples(index)
        name = list(videos)[int(example["item"])]
        problem = example["problem"].item().decode()
        assert problem.startswith(problems.get(name, ""))
        assert bool(problem) == (name != "fine") == (example["weight"] == 0)
        for array in ("video", "ids", "fs", "frame", "keep_image"):
            assert name == "fine" or not example[array].any()
        assert (example["index"], example["item"]) == (index, video_of(0, index, 6))


@pytest.mark.parametrize("error, problem", [
    (UserError("a.txt is not UTF-8"), b"a.txt is not UTF-8"),
    (OSError(5, "Input/output error"), b"video 0 can't be read: [Errno 5] Input/output error"),
    (UserError("Ü" * 150 + "\n"), "Ü".encode() * 100),
    (UserError("x" + "Ü" * 150), b"x" + "Ü".encode() * 99),
    (UserError("name \udce9"), b"name \\udce9"),
])  # fmt: skip
def test_problems_are_said_in_a_line_that_fits(error: Exception, problem: bytes):
    example = VideoExamples(Failing(error), SETTINGS, seed=0)(0)
    assert example["weight"] == 0 and example["problem"].item() == problem


@pytest.mark.parametrize("error", [KeyError("name"), MemoryError(), ZeroDivisionError()])
def test_defects_are_not_taken_for_broken_videos(error: Exception):
    with pytest.raises(type(error)):
        VideoExamples(Failing(error), SETTINGS, seed=0)(0)


def test_long_captions_do_not_warn(folder: Path):
    long = Video("a", "a very long caption " * 50, os.fspath(folder / "a.mp4"))
    settings = replace(SETTINGS, condition_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        example = VideoExamples(Listed(long), settings, seed=0)(0)
    with pytest.warns(UserWarning, match="too long"):
        np.testing.assert_array_equal(example["ids"], tokenize([long.caption])[0])


def test_seeds_are_not_negative():
    with pytest.raises(UserError, match=r"train\.seed is -1: give 0 or more"):
        VideoExamples(Listed(), SETTINGS, seed=-1)


def test_workers_need_neither_jax_nor_tensorflow(folder: Path):
    """Not to import this, and not to make a sample with it."""
    code = f"""
import sys
sys.modules["jax"] = sys.modules["tensorflow"] = None  # any import fails
from dynamicrafter_jax.data.clips import ClipSettings, VideoExamples
from dynamicrafter_jax.data.sources import open_source
source = open_source({os.fspath(folder)!r})
settings = ClipSettings(32, 48, 4, 1, 6, "fps", 0.1, True, 77)
assert VideoExamples(source, settings, 0)(0)["weight"] == 1
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
