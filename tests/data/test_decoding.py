"""Frames by number, against frames that show their number, Pillow, and ffmpeg's plain decoding."""

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import video_files
from PIL import Image

from dynamicrafter_jax import media
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.cropping import cover

H, W = video_files.HEIGHT, video_files.WIDTH
GOP = "x264-params=keyint=10:min-keyint=10:scenecut=0"
TIMES = np.cumsum(np.random.default_rng(0).integers(5, 90, 40)).tolist()

# File name -> how it is written: codec, options and what else `video_files.write` takes.
KINDS: dict[str, dict] = {
    "one_gop.mp4": {},
    "gops.mp4": {"options": GOP},
    "open_gops.mp4": {"options": GOP + ":open-gop=1"},
    "open_gops.mkv": {"options": GOP + ":open-gop=1"},
    "no_b_frames.mov": {"options": GOP + ":bframes=0"},
    "every_frame_a_key.mp4": {"options": "g=1"},
    "refreshed_bit_by_bit.mkv": {"options": "x264-params=keyint=10:intra-refresh=1:bframes=0"},
    "fragments.mp4": {"options": GOP, "container": "movflags=frag_keyframe+empty_moov"},
    "times_vary.mp4": {"options": GOP, "times": TIMES},
    "times_vary.mkv": {"options": GOP, "times": TIMES},
    "h265.mp4": {"codec": "libx265", "options": "x265-params=log-level=error:keyint=10:open-gop=1"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": "g=10,cpu-used=8"},
    "vp8.webm": {"codec": "libvpx", "options": "g=10,auto-alt-ref=1,lag-in-frames=16"},
    "mpeg4.avi": {"codec": "mpeg4", "options": "g=10,bf=2,qscale=2"},
    "h264.avi": {"options": GOP},
    "jpegs.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "animation.gif": {"codec": "gif", "pixels": "rgb8"},
}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def read(path: Path, indices: list[int], height: int = H, width: int = W) -> np.ndarray:
    with open_video(os.fspath(path), path.name) as video:
        return video.read(indices, height, width)


def read_all(path: Path, height: int = H, width: int = W) -> np.ndarray:
    with open_video(os.fspath(path), path.name) as video:
        return video.read(range(video.num_frames), height, width)


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_asked_for(tmp_path: Path, name: str):
    path = video_files.write(tmp_path / name, video_files.numbered(40), **KINDS[name])
    rng = np.random.default_rng(1)
    asked = [np.sort(rng.choice(40, 7, replace=False)).tolist() for _ in range(12)]
    asked += [list(range(start, 40, stride)) for start, stride in [(0, 1), (3, 4), (11, 6)]]
    asked += [[i] for i in (0, 1, 9, 10, 11, 19, 38, 39)]
    with open_video(path.read_bytes(), name) as video:
        assert video.num_frames == 40
        every = np.stack(list(video.frames(range(40), H, W)))
        assert video_files.numbers(every) == list(range(40))
        for indices in asked:
            frames = video.read(indices, H, W)
            assert video_files.numbers(frames) == indices
            np.testing.assert_array_equal(frames, every[indices])


@pytest.mark.parametrize("name", ["gops.mp4", "open_gops.mp4", "refreshed_bit_by_bit.mkv"])
def test_what_is_skipped_changes_no_pixel(tmp_path: Path, name: str):
    """Against ffmpeg's decoding of all frames; the picture moves, so that errors would spread."""
    path = video_files.write(tmp_path / name, video_files.moving(40), **KINDS[name])
    whole, _ = media.read_video(path)
    for start, stride in itertools.product((0, 1, 7, 14), (1, 2, 3, 5)):
        indices = list(range(start, 40, stride))
        frames = read(path, indices)
        assert np.abs(frames.astype(int) - whole[indices]).max() <= 2
        np.testing.assert_array_equal(frames, read_all(path)[indices])


@pytest.mark.parametrize("name", ["gops.mp4", "open_gops.mp4", "open_gops.mkv"])
def test_only_what_is_needed_is_decoded(tmp_path: Path, name: str):
    """From the key before to the last frame: all else may be damaged."""
    path = video_files.write(tmp_path / name, video_files.moving(40), **KINDS[name])
    with av.open(os.fspath(path)) as file:
        packets = [(bytes(p), p.is_keyframe) for p in file.demux(video=0) if p.size]
    keys = [i for i, (_, is_key) in enumerate(packets) if is_key]
    assert len(keys) == 4
    whole = read_all(path)

    def damaged(first_key: int, next_key: int) -> bytes:
        data = path.read_bytes()
        between = [packet for packet, _ in packets[keys[first_key] + 1 : keys[next_key]]]
        for packet in (packet for packet in between if len(packet) > 30):
            assert data.count(packet) == 1
            data = data.replace(packet, packet[:12] + bytes(len(packet) - 12))
        return data

    def check(data: bytes, fine: list[int], broken: int) -> None:
        with open_video(data, name) as video:
            np.testing.assert_array_equal(video.read(fine, H, W), whole[fine])
            with pytest.raises(UserError, match=rf"^{name} is (damaged|truncated)"):
                video.read([broken], H, W)

    # In an open GOP, frames are shown before the key that they follow in the file.
    check(damaged(0, 1), [10, 14, 17, 18, 19, 20, 25, 39], broken=5)
    check(damaged(0, 1), [18], broken=5)
    check(damaged(2, 3), [10, 13, 16, 30, 33, 36], broken=25)


def test_frames_come_one_by_one(tmp_path: Path):
    path = video_files.write(tmp_path / "a.mp4", video_files.numbered(40), options=GOP)
    with open_video(os.fspath(path), "a.mp4") as video:
        frames = video.frames(range(40), H, W)
        assert video_files.numbers(next(frames)[None]) == [0]
        assert video_files.numbers(video.read([7], H, W)) == [7]  # even in the middle of another


@pytest.mark.parametrize("indices", [[3, 3], [4, 2], [-1, 2], [39, 40]])
def test_numbers_out_of_order_are_refused(tmp_path: Path, indices: list[int]):
    path = video_files.write(tmp_path / "a.mp4", video_files.numbered(40))
    with pytest.raises(ValueError, match="are not increasing numbers below 40"):
        read(path, indices)


def test_count_and_rate_are_known_without_decoding(tmp_path: Path):
    rates = {"a.mp4": Fraction(30000, 1001), "a.mkv": 24, "a.avi": 15, "b.mp4": 60}
    for name, rate in rates.items():
        path = video_files.write(tmp_path / name, video_files.numbered(30), rate=rate)
        with open_video(os.fspath(path), name) as video:
            assert video.num_frames == 30
            assert video.fps == pytest.approx(float(rate), rel=1e-3)
    path = video_files.write(tmp_path / "c.mp4", video_files.numbered(40), times=TIMES)
    with open_video(os.fspath(path), "c.mp4") as video:
        seconds = (TIMES[-1] - TIMES[0]) / 1000
        assert video.fps == pytest.approx(39 / seconds, rel=1e-6)


@pytest.mark.parametrize("cut", [3, 10, 14])
def test_frames_that_an_edit_list_cuts_out_do_not_count(tmp_path: Path, cut: int):
    """As after cutting a video without encoding it again: times before 0 are not shown."""
    whole = video_files.write(tmp_path / "a.mp4", video_files.numbered(40), options=GOP)
    path = tmp_path / "b.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with (
        av.open(os.fspath(whole)) as source,
        av.open(os.fspath(path), "w", options=options) as file,
    ):
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                packet.pts -= cut * 512
                packet.dts -= cut * 512
                packet.stream = stream
                file.mux(packet)
    with av.open(os.fspath(path)) as file:
        shown = len(list(file.decode(video=0)))
    with open_video(os.fspath(path), "b.mp4") as video:
        assert video.num_frames == shown
        frames = video.read(range(shown), H, W)
        assert video_files.numbers(frames) == list(range(40 - shown, 40))


def photograph(h: int, w: int) -> np.ndarray:
    """A photograph that ships with the package, cut to a size with even sides."""
    folder = Path(media.__file__).parent.parent / "assets"
    return cover(media.read_picture(folder / "coffee.jpg"), h, w)


SIZES = [
    (180, 320, 64, 128),  # wider than the target
    (180, 320, 160, 256),
    (320, 180, 64, 128),  # upright
    (240, 320, 96, 64),
    (96, 128, 160, 256),  # enlarged
    (64, 64, 64, 64),
    (64, 96, 64, 64),  # cut only
]


@pytest.mark.parametrize("h, w, height, width", SIZES)
def test_frames_lie_as_pillow_lays_them(tmp_path: Path, h: int, w: int, height: int, width: int):
    path = video_files.write(tmp_path / "a.mp4", photograph(h, w)[None], options="crf=4")
    source, _ = media.read_video(path)
    expected = cover(source[0], height, width).astype(np.float64)
    (frame,) = read(path, [0], height, width)
    assert frame.shape == (height, width, 3)
    assert psnr(frame, expected) > 33
    # How far one lies from the other, in pixels, by the slope of the picture (Lucas and Kanade).
    inside = (slice(4, -4), slice(4, -4))
    difference = (frame - expected)[inside].ravel()
    slopes = [np.gradient(expected, axis=axis)[inside].ravel() for axis in (0, 1)]
    shift = np.linalg.lstsq(np.stack(slopes, 1), difference, rcond=None)[0]
    scale = max(height / h, width / w)
    rounding = abs(np.array([round(h * scale) - h * scale, round(w * scale) - w * scale]))
    assert np.all(np.abs(shift) < 0.06 + rounding / 2)


def test_shrinking_does_not_alias(tmp_path: Path):
    stripes = np.zeros((1, 320, 320, 3), np.uint8)
    stripes[:, :, ::2] = 255
    path = video_files.write(tmp_path / "a.mp4", stripes, options="crf=1")
    assert np.abs(read(path, [0], 32, 32)[0, :, 1:-1].astype(int) - 127).max() < 8


COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255)])


def test_colours_follow_their_tags(tmp_path: Path):
    video = np.repeat(np.repeat(COLOURS, 32, 0)[None, None], 32, 1).astype(np.uint8)
    media.write_video(tmp_path / "bt709.mp4", video, 8, crf=1)  # tagged
    video_files.write(tmp_path / "bt601.mp4", video, options="crf=1")  # untagged: BT.601
    video_files.write(tmp_path / "full.mov", video, "mjpeg", "qscale=1", pixels="yuvj444p")
    video_files.write(tmp_path / "rgb.mov", video, "png", pixels="rgb24")
    for path in tmp_path.iterdir():
        frame = read(path, [0], 32, 160)[0, 16, 16::32].astype(int)
        assert np.abs(frame - COLOURS).max() <= 2, path.name


def test_videos_are_turned_upright(tmp_path: Path):
    """As telephones store what they film upright: the picture on its side, and how to turn it."""
    picture = photograph(64, 96)
    path = video_files.write(tmp_path / "a.mp4", picture[None], options="crf=4")
    data = path.read_bytes()
    one, none, minus = (number.to_bytes(4, "big", signed=True) for number in (65536, 0, -65536))
    as_it_is = one + none * 3 + one + none * 3 + bytes([64, 0, 0, 0])
    matrices = {  # QuickTime: x' = a x + c y, y' = b x + d y, with y downwards
        0: [one, none, none, one],
        1: [none, one, minus, none],  # x' = -y, y' = x: a quarter clockwise
        2: [minus, none, none, minus],
        3: [none, minus, one, none],
    }
    track = data.index(b"tkhd")
    for quarters, (a, b, c, d) in matrices.items():
        turned = a + b + none + c + d + none * 3 + bytes([64, 0, 0, 0])
        video = data[:track] + data[track:].replace(as_it_is, turned, 1)
        expected = np.rot90(picture, -quarters)
        h, w = expected.shape[:2]
        with open_video(video, "a.mp4") as reader:
            assert psnr(reader.read([0], h, w)[0], expected) > 30
            # And cut only then.
            assert psnr(reader.read([0], 48, 32)[0], cover(expected, 48, 32)) > 28


def test_pixels_become_square(tmp_path: Path):
    picture = photograph(64, 128)
    squeezed = np.asarray(Image.fromarray(picture).resize((64, 64)))
    path = video_files.write(
        tmp_path / "a.mp4", squeezed[None], options="crf=4", aspect=Fraction(2, 1)
    )
    assert psnr(read(path, [0], 64, 128)[0], picture) > 25
    assert psnr(read(path, [0], 64, 64)[0], picture[:, 32:96]) > 25


def bad_files(folder: Path) -> None:
    whole = video_files.write(
        folder / "whole.mp4", video_files.moving(40), container="movflags=+faststart"
    )
    data = whole.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    (folder / "cut_short.mp4").write_bytes(data[:100])
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "text.mp4").write_text("no video " * 100)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "playlist.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{whole}\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{whole}'\n")
    video_files.write(folder / "tiny.mp4", video_files.moving(3, 8, 64))
    with av.open(os.fspath(folder / "sound.mp4"), "w") as file:
        sound = file.add_stream("aac", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        file.mux([*sound.encode(samples), *sound.encode()])
    for name in ("no_frames.avi", "no_frames.mp4"):
        with av.open(os.fspath(folder / name), "w") as file:
            file.add_stream("mpeg4", rate=8, width=64, height=64)
            file.start_encoding()


BAD_FILES = {
    "cut.mp4": "is cut off: copy it again",
    "cut_short.mp4": "truncated or not a video|holds no video",
    "zeros.mp4": "is zeros, not the file",
    "text.mp4": "truncated or not a video",
    "empty.mp4": "is empty",
    "folder.mp4": "can't be read: Is a directory",
    "playlist.mp4": "truncated or not a video",
    "list.mp4": "truncated or not a video",
    "tiny.mp4": "frames of 64 x 8 pixels: give a video with sides of 16 or more",
    "sound.mp4": "holds no video",
    "no_frames.avi": "holds no (frames|video)",
    "no_frames.mp4": "holds no (frames|video)",
    "none.mp4": "can't be read: No such file",
}


def test_bad_files_are_refused_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    bad_files(tmp_path)
    for name, message in BAD_FILES.items():
        with (
            pytest.raises(UserError, match=f"^{name} .*({message})") as caught,
            open_video(os.fspath(tmp_path / name), name),
        ):
            raise AssertionError(name)
        assert "\n" not in str(caught.value)
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


def test_damage_inside_is_noticed(tmp_path: Path):
    """The decoder would go on with a guess, smeared over all frames after."""
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(20, 96, 160))
    data = path.read_bytes()
    begin, end = data.index(b"mdat") + 900, data.index(b"moov")  # after the encoder's own words

    def refused(place: int, damage: bytes) -> bool:
        broken = data[:place] + damage + data[place + len(damage) :]
        try:
            with open_video(broken, "a.mp4") as video:
                video.read(range(20), 96, 160)
        except UserError as error:
            assert str(error).startswith(("a.mp4 is damaged", "a.mp4 is truncated"))
            return True
        return False

    rng = np.random.default_rng(0)
    places = rng.integers(begin, end - 1500, 40).tolist()
    assert all(refused(place, bytes(1500)) for place in places[:5])
    # One byte may turn a picture into another that is as good a code.
    assert sum(refused(place, bytes([data[place] ^ 0x5A])) for place in places) > 12


def test_names_are_names_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.mp4", "100%d.mp4", "concat:a|b.mp4", "Ü 'n' \"q\" \n.mp4", "-i.mp4"):
        video_files.write(tmp_path / "a.mp4", video_files.numbered(3)).rename(name)
        assert video_files.numbers(read_all(Path(name))) == [0, 1, 2]


def test_tags_in_an_old_encoding_do_no_harm(tmp_path: Path):
    path = video_files.write(tmp_path / "a.mkv", video_files.numbered(3))
    data = path.read_bytes().replace(b"Lavf", b"L\xe9vf")
    assert b"\xe9" in data
    with open_video(data, "a.mkv") as video:
        assert video_files.numbers(video.read(range(3), H, W)) == [0, 1, 2]
