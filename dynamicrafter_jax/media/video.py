"""Writes frames to `.mp4`, `.gif`, `.webp` or a folder of PNGs, and reads video files."""

import io
import os
import tempfile
import typing
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.orientation import of_frame
from dynamicrafter_jax.media.rates import frame_rate
from dynamicrafter_jax.media.sheet import encode_png
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

CODECS = {"libx264": 51, "libx265": 51, "libvpx-vp9": 63}
"""Encoders for `.mp4` (H.264, H.265, VP9), each with the largest `crf` it accepts."""

_EXTENSIONS = (".mp4", ".gif", ".webp")
_FOLDER = "folder"
_LOWEST_FPS = 0.1
# GIF counts hundredths of a second, and players slow down frames that last only one of them.
_HIGHEST_FPS = {".mp4": 240, ".gif": 50, ".webp": 240, _FOLDER: 240}

# Without these, conversion between RGB and YUV rounds down and darkens a picture by one level.
_ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


def check_output(
    path: epath.PathLike, fps: float | int = 8.0, *, codec: str = "libx264", crf: int = 18
) -> None:
    """Checks, before a long computation, that `write_video` will accept its arguments.

    Raises:
        UserError: The extension or codec is unknown, a number is out of range, or the path can't
            be written (`files.check_writable`).
    """
    kind = _kind(path)
    _check_settings(kind, fps, codec, crf)
    files.check_writable(path, folder=kind == _FOLDER)


def write_video(
    path: epath.PathLike,
    video: UInt8[np.ndarray, "t h w 3"],
    fps: float | int,
    *,
    codec: str = "libx264",
    crf: int = 18,
) -> None:
    """Writes frames atomically, in the format given by the extension of `path`.

    - `.mp4`: `codec` in yuv420p, with colours converted and tagged as BT.709, and the index in
      front, so that it plays while it loads. yuv420p has one colour sample per 2 x 2 pixels, so if
      a side is odd, the last row or column is repeated once.
    - `.gif`: 256 colours chosen for each frame, dithered; repeats for ever.
    - `.webp`: lossy at quality 95; repeats for ever.
    - No extension, or a slash at the end: a folder of `frame_0000.png`, ..., lossless and without
      `fps`. The folder must be new or empty; one with contents is never touched.

    In `.gif` and `.webp`, consecutive equal frames may be stored as one that lasts longer.

    Args:
        path: Where to write, local or remote. An older file is replaced, missing parents are made.
        video: The frames, one or more.
        fps: Frames a second, possibly fractional (23.976), from 0.1 to 240, or to 50 for `.gif`.
        codec: One of `CODECS`, for `.mp4`.
        crf: Constant rate factor for `.mp4`: lower is better and larger. 18 looks lossless.

    Raises:
        UserError: An argument is not as described, or encoding or writing fails.
    """
    kind = _kind(path)
    _check_settings(kind, fps, codec, crf)
    if not len(video):
        raise UserError(f"{os.fspath(path)} can't be written: the video has no frames")
    if kind == _FOLDER:
        _write_folder(path, video)
    elif kind == ".mp4":
        files.write_bytes(path, _encode_mp4(video, fps, codec, crf))
    elif kind == ".gif":
        files.write_bytes(path, _encode_gif(video, fps))
    else:
        files.write_bytes(path, _encode_webp(video, fps))


def read_video(path: epath.PathLike) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Reads all frames of a video file that ffmpeg can read, turned upright.

    Returns:
        The frames, and the average number of frames a second, by the times of the frames.

    Raises:
        UserError: The file is missing, truncated, or holds no video.
    """
    data = files.read_bytes(path)
    name = os.fspath(path)
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.video:
                raise UserError(f"{name} holds no video: give a video file")
            stream = container.streams.video[0]
            frames, times, orientation = [], [], None
            for frame in container.decode(stream):
                # Some streams give it only at their first picture, for all of them.
                orientation = orientation or of_frame(frame)
                picture = frame.to_ndarray(
                    format="rgb24",
                    width=stream.width,
                    height=stream.height,
                    interpolation=_ACCURATE,
                )
                frames.append(orientation.upright(picture))
                times += [] if frame.pts is None else [frame.pts]
            ticks = max(times) - min(times) if times else 0
            base = typing.cast(Fraction, stream.time_base)
            rate = frame_rate(len(frames), ticks, base, stream.average_rate) or stream.guessed_rate
    except FFmpegError as error:
        refuse_placeholder(name, data)
        raise UserError(
            f"{name} is truncated or not a video ({error.strerror}): make or copy it again"
        ) from error
    if not frames or not rate:
        raise UserError(f"{name} holds no frames or no frame rate: make or copy it again")
    return np.stack(frames), float(rate)


def _kind(path: epath.PathLike) -> str:
    """Returns the extension in lower case, or `_FOLDER`."""
    name = os.fspath(path)
    suffix = files.as_path(path).suffix.lower()
    known = f"give .mp4, .gif or .webp, or end with a slash for a folder of PNGs ({name}/)"
    if os.path.basename(name).lower() in _EXTENSIONS:
        raise UserError(f"{name} has an extension but no name: give one, such as video{name}")
    if not name:
        raise UserError("the output path is empty: give one, such as video.mp4")
    if name.endswith("/") or not suffix:
        return _FOLDER
    if suffix not in _EXTENSIONS:
        raise UserError(f"{name} has the unknown extension {suffix}: {known}")
    return suffix


def _check_settings(kind: str, fps: float | int, codec: str, crf: int) -> None:
    highest = _HIGHEST_FPS[kind]
    if not _LOWEST_FPS <= fps <= highest:
        raise UserError(
            f"{fps:g} frames a second is out of range for a {kind}: "
            f"give {_LOWEST_FPS:g} to {highest}"
        )
    if kind != ".mp4":
        return
    known = [name for name in CODECS if name in av.codecs_available]
    if codec not in known:
        raise UserError(f"{codec!r} is not a known codec: choose from {', '.join(known)}")
    if not 0 <= crf <= CODECS[codec]:
        raise UserError(f"crf {crf} is out of range for {codec}: give 0 to {CODECS[codec]}")


def _write_folder(path: epath.PathLike, video: UInt8[np.ndarray, "t h w 3"]) -> None:
    with files.atomic(path) as folder:
        folder.mkdir()
        for i, frame in enumerate(video):
            (folder / f"frame_{i:04d}.png").write_bytes(encode_png(frame))


def _encode_mp4(
    video: UInt8[np.ndarray, "t h w 3"], fps: float | int, codec: str, crf: int
) -> bytes:
    h, w = video.shape[1:3]
    even = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    try:
        # To move the index to the front, ffmpeg opens the file again by its name.
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "video.mp4")
            _encode_mp4_file(file, even, fps, codec, crf)
            with open(file, "rb") as stream:
                return stream.read()
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()}, where the video is made, can't be written: "
            f"{error.strerror}; free some space, or set TMPDIR to another directory"
        ) from error
    except FFmpegError as error:
        raise UserError(
            f"{codec} can't encode {w} x {h} pixels at {fps:g} frames a second "
            f"({error.strerror}): try another size or codec"
        ) from error


def _encode_mp4_file(
    file: str, video: UInt8[np.ndarray, "t h w 3"], fps: float | int, codec: str, crf: int
) -> None:
    options = {"crf": str(crf), **_repeatable(codec, *video.shape[1:3])}
    rate = Fraction(fps).limit_denominator(1001)  # 24000/1001 and the like stay exact
    with av.open(file, "w", options={"movflags": "+faststart"}) as container:
        stream = typing.cast(
            av.VideoStream, container.add_stream(codec, rate=rate, options=options)
        )
        context = stream.codec_context
        context.height, context.width = video.shape[1:3]
        context.pix_fmt = "yuv420p"
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        if codec == "libx265":
            context.codec_tag = "hvc1"  # Apple's players ignore the default, hev1
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=_ACCURATE
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _repeatable(codec: str, h: int, w: int) -> dict[str, str]:
    """The options with which equal frames become equal bytes, in every process.

    Left alone, x264 chooses its quantisers by memory that it never wrote, and x265 reads and
    writes outside its memory where one block of 64 x 64 pixels holds the whole frame.
    """
    if codec == "libx264":
        return {"x264-params": "cpu-independent=1"}
    if codec == "libx265":
        if max(h, w) <= 64 and min(h, w) < 64:
            raise UserError(
                f"libx265 can't encode frames as small as {w} x {h} pixels: use libx264"
            )
        return {"x265-params": "log-level=error" + (":ctu=32" if max(h, w) == 64 else "")}
    return {}


def _encode_gif(video: UInt8[np.ndarray, "t h w 3"], fps: float | int) -> bytes:
    return _animation("GIF", [_with_palette(frame) for frame in video], _durations(video, fps, 10))


def _with_palette(frame: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    """Reduces a frame to 256 colours of its own, with Floyd-Steinberg dithering."""
    picture = Image.fromarray(frame)
    palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _encode_webp(video: UInt8[np.ndarray, "t h w 3"], fps: float | int) -> bytes:
    pictures = [Image.fromarray(frame) for frame in video]
    return _animation("WEBP", pictures, _durations(video, fps, 1), quality=95)


def _animation(
    format: str, pictures: list[Image.Image], durations: list[int], **options: int
) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format=format,
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        **options,
    )
    return buffer.getvalue()


def _durations(video: UInt8[np.ndarray, "t h w 3"], fps: float | int, unit: int) -> list[int]:
    """Returns milliseconds of each frame in whole units, rounded so that errors don't add up."""
    ends = np.rint(np.arange(len(video) + 1) * (1000 / (fps * unit))).astype(int)
    return (np.diff(ends) * unit).tolist()
