"""Videos written by us, read by other programs' code: ffmpeg through PyAV, and Pillow."""

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dynamicrafter_jax import media
from dynamicrafter_jax.errors import UserError

PHOTOGRAPH = Path(media.__file__).parent.parent / "assets" / "rocket.jpg"


def clip(t: int, h: int, w: int) -> np.ndarray:
    """A smooth, colourful pattern that moves, so that no two frames are alike."""
    time, y, x = np.mgrid[:t, :h, :w].astype(np.float64)
    red = np.sin((x + 5 * time) / 13) * np.cos(y / 17)
    green = np.cos((x - y + 3 * time) / 19)
    blue = np.sin((y + 4 * time) / 11)
    return np.rint(127.5 + 100 * np.stack([red, green, blue], -1)).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@dataclass
class Decoded:
    """A video by ffmpeg, with its own defaults."""

    frames: np.ndarray
    fps: float
    seconds: float
    codec: tuple[str, str, str | None]
    colours: tuple[int, int, int, int]


def decode(path: Path) -> Decoded:
    with av.open(os.fspath(path), "r") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.frames == len(frames)
        assert stream.average_rate and stream.duration and stream.time_base
        context = stream.codec_context
        return Decoded(
            np.stack(frames),
            float(stream.average_rate),
            float(stream.duration * stream.time_base),
            (context.name, context.codec_tag, context.pix_fmt),
            (
                context.colorspace,
                context.color_primaries,
                context.color_trc,
                context.color_range,
            ),
        )


def animation(path: Path) -> tuple[np.ndarray, list[int]]:
    """Frames and milliseconds by Pillow."""
    frames, durations = [], []
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(int(picture.info["duration"]))
    return np.stack(frames), durations


@pytest.mark.parametrize("codec, name, tag", [
    ("libx264", "h264", "avc1"),
    ("libx265", "hevc", "hvc1"),
    ("libvpx-vp9", "vp9", "vp09"),
])  # fmt: skip
def test_mp4(tmp_path: Path, capfd: pytest.CaptureFixture, codec: str, name: str, tag: str):
    video = clip(16, 64, 96)
    path = tmp_path / "new" / "a.mp4"
    media.write_video(path, video, 8, codec=codec)
    ours = decode(path)
    assert ours.codec == (name, tag, "yuv420p")
    assert ours.colours == (1, 1, 1, 1)  # BT.709 thrice, and levels from 16 to 235
    assert (len(ours.frames), ours.fps, ours.seconds) == (16, 8, 2)
    assert psnr(ours.frames, video) > 34
    for i, frame in enumerate(ours.frames):
        assert max(range(16), key=lambda j: psnr(frame, video[j])) == i
    read, fps = media.read_video(path)
    assert fps == 8 and psnr(read, video) > 36
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads
    assert names(path.parent) == ["a.mp4"]
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


@pytest.mark.parametrize("codec", media.CODECS)
def test_equal_frames_are_equal_bytes(tmp_path: Path, codec: str):
    """Encoders have read memory that they never wrote: what lies there changes here."""
    with Image.open(PHOTOGRAPH) as picture:
        w, h = picture.size
        margins = [i * h // 80 for i in range(16)]
        zooming = [picture.crop((m, m, w - m, h - m)).resize((64, 64)) for m in margins]
    for video in (clip(16, 64, 64), np.stack([np.asarray(frame) for frame in zooming])):
        written = set()
        for i in range(8):
            junk = [bytes([i + 1]) * size for size in range(1000, 200_000, 1000)]
            del junk[::2]
            media.write_video(tmp_path / "a.mp4", video, 8, codec=codec)
            written.add((tmp_path / "a.mp4").read_bytes())
        assert len(written) == 1


def test_mp4_luma_follows_bt_709(tmp_path: Path):
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255)])
    video = np.repeat(np.repeat(colours, 32, 0)[None, None], 32, 1).astype(np.uint8)
    media.write_video(tmp_path / "a.mp4", video, 8, crf=1)
    with av.open(os.fspath(tmp_path / "a.mp4"), "r") as container:
        (frame,) = container.decode(container.streams.video[0])
    luma = frame.to_ndarray(format="yuv420p")[16, 16::32]
    expected = 16 + 219 * colours @ [0.2126, 0.7152, 0.0722] / 255  # ITU-R BT.709, 3.2 and 3.3
    np.testing.assert_allclose(luma, expected, atol=1)
    read, _ = media.read_video(tmp_path / "a.mp4")
    np.testing.assert_allclose(read[0, 16, 16::32].astype(int) - colours, 0, atol=1)


def test_mp4_colours_are_rounded_and_not_cut_off(tmp_path: Path):
    """ffmpeg's quick conversion loses one level in red, green and blue on the way, on average."""
    video = clip(2, 64, 96)
    media.write_video(tmp_path / "a.mp4", video, 8, crf=1)
    read, _ = media.read_video(tmp_path / "a.mp4")
    assert np.abs((read.astype(int) - video).mean(axis=(0, 1, 2))).max() < 0.3
    assert psnr(read, video) > 41


def test_codecs_that_this_ffmpeg_lacks_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(av, "codecs_available", {"libx265", "png"})
    media.check_output(tmp_path / "a.mp4", codec="libx265")
    for codec in ("libx264", "png"):
        with pytest.raises(UserError, match=f"'{codec}' is not a known codec: .* libx265$"):
            media.check_output(tmp_path / "a.mp4", codec=codec)


@pytest.mark.parametrize("h, w", [(33, 48), (32, 47), (33, 47), (17, 1), (1, 17)])
def test_mp4_of_odd_sides_repeats_the_last_line(tmp_path: Path, h: int, w: int):
    video = clip(3, h, w)
    media.write_video(tmp_path / "a.mp4", video, 8, crf=8)
    frames = decode(tmp_path / "a.mp4").frames
    assert frames.shape == (3, h + h % 2, w + w % 2, 3)
    assert psnr(frames[:, :h, :w], video) > 30
    assert psnr(frames[:, -1, :w], video[:, -1]) > 28
    assert psnr(frames[:, :h, -1], video[:, :, -1]) > 28


@pytest.mark.parametrize("fps", [0.5, 7.5, 24000 / 1001, 29.97, 60])
def test_mp4_frame_rates(tmp_path: Path, fps: float):
    media.write_video(tmp_path / "a.mp4", clip(5, 32, 32), fps)
    ours = decode(tmp_path / "a.mp4")
    assert len(ours.frames) == 5
    assert ours.fps == media.read_video(tmp_path / "a.mp4")[1] == pytest.approx(fps, rel=1e-6)
    assert ours.seconds == pytest.approx(5 / fps, rel=1e-3)


@pytest.mark.parametrize("codec", media.CODECS)
def test_mp4_crf_trades_size_for_quality(tmp_path: Path, codec: str):
    video = clip(4, 64, 96)
    sizes, qualities = [], []
    for crf in (10, 40):
        media.write_video(tmp_path / "a.mp4", video, 8, codec=codec, crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        qualities.append(psnr(decode(tmp_path / "a.mp4").frames, video))
    assert sizes[0] > sizes[1] and qualities[0] > qualities[1] + 2


@pytest.mark.parametrize("extension", ["mp4", "MP4", "gif", "webp"])
def test_one_frame(tmp_path: Path, extension: str):
    video = clip(1, 32, 48)
    path = tmp_path / f"a.{extension}"
    media.write_video(path, video, 8)
    if extension.lower() == "mp4":
        frames = decode(path).frames
    else:
        with Image.open(path) as picture:
            frames = np.asarray(picture.convert("RGB"))[None]
    assert psnr(frames, video) > 30


@pytest.mark.parametrize("fps", [7.5, 8, 24, 50])
def test_gif(tmp_path: Path, fps: float):
    video = clip(16, 64, 96)
    media.write_video(tmp_path / "a.gif", video, fps)
    frames, durations = animation(tmp_path / "a.gif")
    assert len(frames) == 16
    # Hundredths of a second: each within one of the truth, and all together within half a one.
    assert all(abs(duration - 1000 / fps) < 10 for duration in durations)
    assert abs(sum(durations) - 16000 / fps) <= 5
    assert psnr(frames, video) > 27

    # Dithering shows in single pixels; the eye, further away, sees their mean.
    def blurred(array: np.ndarray) -> np.ndarray:
        return gaussian_filter(array.astype(np.float64), (0, 1.5, 1.5, 0))

    assert psnr(blurred(frames), blurred(video)) > 38


@pytest.mark.parametrize("fps", [8, 23.976, 60])
def test_webp(tmp_path: Path, fps: float):
    video = clip(16, 64, 96)
    media.write_video(tmp_path / "a.webp", video, fps)
    frames, durations = animation(tmp_path / "a.webp")
    assert len(frames) == 16 and psnr(frames, video) > 34
    assert all(abs(duration - 1000 / fps) < 1 for duration in durations)
    assert abs(sum(durations) - 16000 / fps) <= 0.5


@pytest.mark.parametrize("extension", ["gif", "webp"])
def test_still_scenes_last_as_long(tmp_path: Path, extension: str):
    video = np.repeat(clip(2, 32, 32), 4, axis=0)
    media.write_video(tmp_path / f"a.{extension}", video, 8)
    assert sum(animation(tmp_path / f"a.{extension}")[1]) == 1000


@pytest.mark.parametrize("place", ["frames", "frames/", "frames.v2/"])
def test_folder_of_pngs(tmp_path: Path, place: str):
    video = clip(11, 20, 30)
    path = f"{tmp_path}/{place}"
    media.check_output(path)
    media.write_video(path, video, 8)
    assert names(Path(path)) == [f"frame_{i:04d}.png" for i in range(11)]
    for i, frame in enumerate(video):
        picture = Image.open(Path(path) / f"frame_{i:04d}.png")
        np.testing.assert_array_equal(np.asarray(picture), frame)
    assert len(names(tmp_path)) == 1
    # Not even frames of an earlier run are replaced: other programs name theirs alike.
    for write in (media.check_output, lambda path: media.write_video(path, video[:2], 8)):
        with pytest.raises(UserError, match="not empty: give a new or an empty one"):
            write(path)
    assert len(names(Path(path))) == 11


BAD_OUTPUTS: list[tuple[str, dict, str]] = [
    (
        "a.avi",
        {},
        "unknown extension .avi: give .mp4, .gif or .webp, or end with a slash for a folder "
        "of PNGs",
    ),
    ("a.mp4.txt", {}, "unknown extension .txt"),
    (".mp4", {}, "has an extension but no name"),
    ("file/a.mp4", {}, "file is a file, not a directory"),
    ("folder.mp4", {}, "folder.mp4 is a directory: give the path of a file"),
    ("file", {}, "file is a file, which a folder can't replace"),
    ("full/", {}, "full/ is a folder that is not empty"),
    ("x" * 300 + ".mp4", {}, "can't be written: File name too long"),
    ("a.mp4", {"codec": "h266"}, "'h266' is not a known codec: choose from libx264, libx265"),
    ("a.mp4", {"codec": "aac"}, "'aac' is not a known codec"),
    ("a.mp4", {"crf": 52}, "crf 52 is out of range for libx264: give 0 to 51"),
    ("a.mp4", {"crf": -1}, "crf -1 is out of range"),
    ("a.mp4", {"fps": 0.0}, "0 frames a second is out of range for a .mp4: give 0.1 to 240"),
    ("a.mp4", {"fps": float("nan")}, "nan frames a second is out of range"),
    ("a.mp4", {"fps": float("inf")}, "inf frames a second is out of range"),
    ("a.gif", {"fps": 60.0}, "60 frames a second is out of range for a .gif: give 0.1 to 50"),
]


@pytest.mark.parametrize("place, settings, message", BAD_OUTPUTS)
def test_bad_outputs_are_noticed_before_and_while_writing(
    tmp_path: Path, place: str, settings: dict, message: str
):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    before = names(tmp_path)
    path = f"{tmp_path}/{place}"
    settings = {"fps": 8.0, **settings}
    with pytest.raises(UserError, match=message) as caught:
        media.check_output(path, **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        media.write_video(path, clip(2, 32, 32), **settings)
    assert names(tmp_path) == before and names(tmp_path / "full") == ["thesis.tex"]


def test_empty_path_and_unwritable_places():
    with pytest.raises(UserError, match="output path is empty"):
        media.check_output("")
    for path in ("/proc/a.mp4", "/proc/frames/", "/proc/new/a.gif"):
        with pytest.raises(UserError, match=f"{path} can't be written"):
            media.check_output(path)


@pytest.mark.parametrize("place", ["a.mp4", "new/a.gif", "a.webp", "new/frames/", "frames"])
def test_check_output_leaves_nothing(tmp_path: Path, place: str):
    media.check_output(f"{tmp_path}/{place}", 24, codec="libx265", crf=20)
    assert names(tmp_path) == []


def test_what_an_encoder_refuses_is_said(tmp_path: Path):
    with pytest.raises(
        UserError, match="libx264 can't encode 20000 x 2 pixels at 8 frames a second"
    ):
        media.write_video(tmp_path / "a.mp4", np.zeros((1, 2, 20000, 3), np.uint8), 8)
    with pytest.raises(UserError, match="libx265 can't encode frames as small as 64 x 48 pixels"):
        media.write_video(tmp_path / "a.mp4", clip(2, 48, 64), 8, codec="libx265")
    with pytest.raises(UserError, match="no frames"):
        media.write_video(tmp_path / "a.mp4", clip(2, 4, 4)[:0], 8)
    assert names(tmp_path) == []


def failing_after(count: int, function: Callable) -> Callable:
    calls = iter(range(count))

    def call(*args, **kwargs):
        if next(calls, None) is None:
            raise RuntimeError("the encoder broke")
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("place", ["a.mp4", "a.gif", "a.webp", "frames/"])
def test_a_broken_encoder_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    for name in ("a.mp4", "a.gif", "a.webp"):
        (tmp_path / name).write_text("older")
    before = names(tmp_path)
    # All four formats turn each array into a picture or frame: the third time fails.
    monkeypatch.setattr(Image, "fromarray", failing_after(2, Image.fromarray))
    from_ndarray = failing_after(2, av.VideoFrame.from_ndarray)
    monkeypatch.setattr(av, "VideoFrame", type("Frame", (), {"from_ndarray": from_ndarray}))
    with pytest.raises(RuntimeError, match="the encoder broke"):
        media.write_video(f"{tmp_path}/{place}", clip(4, 32, 32), 8)
    assert names(tmp_path) == before
    assert {(tmp_path / name).read_text() for name in before} == {"older"}


@pytest.mark.parametrize("place", ["a.mp4", "a.gif", "a.webp", "frames/"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, place: str):
    for name in ("a.mp4", "a.gif", "a.webp"):
        (tmp_path / name).write_text("older")
    before = names(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # the system refuses longer files
    try:
        with pytest.raises(UserError, match="can't be written: File too large"):
            media.write_video(f"{tmp_path}/{place}", noise, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == before
    assert {(tmp_path / name).read_text() for name in before} == {"older"}


def test_bad_videos(tmp_path: Path):
    media.write_video(tmp_path / "whole.mp4", clip(16, 64, 96), 8)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "short.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "shorter.mp4").write_bytes(data[:100])
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "empty.mp4").touch()
    with av.open(os.fspath(tmp_path / "sound.wav"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
    with av.open(os.fspath(tmp_path / "still.avi"), "w") as container:
        container.add_stream("mpeg4", rate=8, width=64, height=64)
        container.start_encoding()
    for name, message in {
        "still.avi": "holds no frames",
        "none.mp4": "does not exist",
        "short.mp4": "truncated or not a video",
        "shorter.mp4": "truncated or not a video|holds no video",
        "text.mp4": "truncated or not a video",
        "empty.mp4": "is empty",
        "sound.wav": "holds no video",
    }.items():
        with pytest.raises(UserError, match=f"{name} .*({message})") as caught:
            media.read_video(tmp_path / name)
        assert "\n" not in str(caught.value)
