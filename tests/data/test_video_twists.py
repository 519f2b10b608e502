"""Each codec in each container, and what goes wrong, against another build of ffmpeg."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import video_files
import video_twists

from dynamicrafter_jax import media
from dynamicrafter_jax.data.clips import ClipSettings, VideoExamples
from dynamicrafter_jax.data.folders import EXTENSIONS
from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.data.videos.packets import read_index
from dynamicrafter_jax.errors import UserError

EXPECTED = json.loads((Path(__file__).parent.parent / "golden/videos.json").read_text())
CASES = {case.name: case for case in video_twists.cases()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where what was encoded is found again."""
    return tmp_path_factory.mktemp("videos")


def test_all_cases_were_pinned():
    assert EXPECTED.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_videos_are_as_another_decoder_shows_them(folder: Path, name: str):
    case = CASES[name]
    shown, rate = EXPECTED[name]
    with open_video(os.fspath(case.make(folder)), name) as video:
        size = case.picture.size
        frames = np.stack(list(video.frames(range(video.num_frames), *size)))
        assert case.picture.describe(frames) == shown
        assert rate is None or video.fps == pytest.approx(rate, rel=1e-3)
        some = list(range(1, video.num_frames, 5))
        np.testing.assert_array_equal(video.read(some, *size), frames[some])


REPORTED = {  # file -> its frames, and how many there are a second
    "vp8_two_pass.webm": (60, 25.0),
    "no_frame_rate.webm": (20, 19 / 0.645),
    "remuxed_from_avi.mp4": (58, 57 / 2.36),
}


@pytest.mark.parametrize("name", REPORTED)
def test_files_that_were_reported(name: str):
    """A white bar grows by two pixels a frame."""
    count, rate = REPORTED[name]
    path = os.fspath(video_twists.CASES / name)
    with open_video(path, name) as video:
        assert video.num_frames == count
        assert video.fps == pytest.approx(rate, rel=1e-4)
        frames = video.read(range(count), 96, 128)
    whole, told = media.read_video(path)
    assert told == pytest.approx(rate, rel=1e-4)
    for read in (frames, whole):
        assert video_twists.bars(read) == list(range(1, count + 1))


def test_models_are_told_the_rate_of_the_times():
    """Not the 1000 frames a second that a browser writes."""

    class One:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Video:
            return Video("a", "", os.fspath(video_twists.CASES / "no_frame_rate.webm"))

    settings = ClipSettings(
        height=32,
        width=48,
        num_frames=4,
        min_stride=2,
        max_stride=2,
        fs="fps",
        condition_dropout=0.0,
        random_frame=True,
        context_length=77,
    )
    example = VideoExamples(One(), settings, seed=0)(0)
    assert example["weight"] == 1 and example["fs"] == 19 / 0.645 // 2


def test_folders_take_videos_in_every_container_of_the_table():
    assert {f".{extension}" for extension in video_twists.PAIRS} <= set(EXTENSIONS)


def test_a_mirrored_file_that_was_reported():
    path = os.fspath(video_twists.CASES / "mirrored.mp4")
    with open_video(path, "mirrored.mp4") as video:
        frames = video.read([0, 7, 19], 64, 64)
    for read in (frames, media.read_video(path)[0]):
        assert video_twists.letters(read) == f"{len(read)} x GRWB"


@pytest.mark.parametrize("name", video_twists.MATRICES)
def test_whole_videos_are_upright(folder: Path, name: str):
    for kind in ("matrix", "sei"):
        case = CASES[f"{kind} {name} h264.mp4"]
        frames, _ = media.read_video(case.make(folder))
        assert case.picture.describe(frames) == EXPECTED[case.name][0]
        assert frames.shape[1:] == ((96, 64, 3) if "transposed" in name else (64, 96, 3))


@pytest.mark.parametrize("name", video_twists.MATRICES)
def test_what_is_cut_off_follows_from_what_is_shown(folder: Path, name: str):
    """Of an odd number of rows or columns, the smaller half at the top and the left."""
    path = video_files.write(folder / "moving.mkv", video_files.moving(1, 64, 96), options="crf=4")
    matrix = video_twists.MATRICES[name]
    turned = video_twists.copy(path, folder / "turned.mp4", matrix=matrix)
    h, w = (96, 64) if "transposed" in name else (64, 96)
    with open_video(os.fspath(turned), name) as video:
        whole = video.read([0], h, w)
        np.testing.assert_array_equal(video.read([0], h - 5, w), whole[:, 2:-3])
        np.testing.assert_array_equal(video.read([0], h, w - 5), whole[:, :, 2:-3])


@pytest.mark.parametrize("extension", ["mkv", "webm"])
def test_files_strung_together_are_refused(folder: Path, extension: str):
    """Where times come again, these containers can't be read from their start twice."""
    path = CASES[f"plain vp9.{extension}"].make(folder)
    path.write_bytes(2 * path.read_bytes())
    with (
        open_video(os.fspath(path), "a") as video,
        pytest.raises(UserError, match="a can't be read again from its start"),
    ):
        video.read(range(video.num_frames), 48, 64)


def test_bytes_are_read_as_files_are(folder: Path):
    for name in ("twice h264.ts", "one frame h264.flv", "packed mpeg4.avi"):
        case = CASES[name]
        with open_video(case.make(folder).read_bytes(), name) as video:
            frames = video.read(range(video.num_frames), 48, 64)
        assert case.picture.describe(frames) == EXPECTED[name][0]


def test_a_last_packet_that_is_cut_off_is_no_frame(folder: Path):
    path = video_files.write(folder / "a.flv", video_files.moving(20, 96, 160), options="bf=0")
    data = path.read_bytes()
    with open_video(data, "a.flv") as video:
        whole = video.read(range(20), 96, 160)
    for size in range(len(data) // 2, len(data) - 100, 600):
        with open_video(data[:size], "a.flv") as video:
            assert 4 < video.num_frames < 20
            frames = video.read(range(video.num_frames), 96, 160)
            np.testing.assert_array_equal(frames, whole[: len(frames)])


def test_what_only_might_be_reordered_is_decoded_from_the_nearest_key(folder: Path):
    """Between two keys there is no place for a frame that waits, whatever the header says."""
    frames = video_files.numbered(20)
    path = video_files.write(folder / "b.mp4", frames, options="x264-params=keyint=2:bframes=1")
    with av.open(os.fspath(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.has_b_frames
        assert not read_index(file, stream)[0].counted


def test_frames_that_come_in_another_order_are_refused(folder: Path, monkeypatch):
    """Where the codec does not say that it reorders, but does, and times are those of decoding."""
    path = CASES["times of decoding mpeg4.mp4"].make(folder)
    monkeypatch.setattr("dynamicrafter_jax.data.videos.packets.must_count", lambda *_, **__: False)
    with (
        open_video(os.fspath(path), "a") as video,
        pytest.raises(UserError, match="a stores when its frames are decoded"),
    ):
        video.read([0, 5], 48, 64)


def test_packets_are_of_the_kinds_that_they_should_be(folder: Path):
    """The makers make what they say, so that the table is no table of plain files."""

    def packets(name: str) -> list[av.Packet]:
        with av.open(os.fspath(CASES[name].make(folder))) as file:
            return [packet for packet in file.demux(video=0) if packet.size]

    for name in ("hidden vp8.mkv", "hidden vp9.flv", "hidden av1.avi"):
        assert len(packets(name)) > {"1-60": 60, "0-19": 20}[EXPECTED[name][0]]
    for name in ("times of decoding h264.mp4", "times of decoding mpeg4.mkv"):
        times = [packet.pts for packet in packets(name)]
        assert all(time is not None for time in times)
        assert times == sorted(times, key=lambda time: time or 0)
    assert any(packet.size < 8 for packet in packets("packed mpeg4.avi"))
