"""Small video files for tests: frames that show their number, or that move, in any codec."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
_BITS = 8


def numbered(count: int) -> np.ndarray:
    """Frames (t, h, w, 3) that show their number: eight bars, white where its bit is set."""
    bits = np.arange(count)[:, None] >> np.arange(_BITS) & 1
    bars = np.repeat(bits * 255, WIDTH // _BITS, axis=1).astype(np.uint8)
    return np.repeat(np.repeat(bars[:, None, :, None], HEIGHT, axis=1), 3, axis=3)


def numbers(video: np.ndarray) -> list[int]:
    """The numbers that frames of `numbered` show, whatever size they were brought to."""
    bars = np.array_split(video[..., 0].astype(float), _BITS, axis=2)
    bits = [bar.mean(axis=(1, 2)) > 127 for bar in bars]
    return (np.stack(bits, axis=1) @ (1 << np.arange(_BITS))).tolist()


def moving(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frames (t, h, w, 3) of a colourful pattern that drifts, no two alike."""
    time, y, x = np.mgrid[:count, :height, :width].astype(np.float64)
    red = np.sin((x + 3 * time) / 7) * np.cos(y / 9)
    green = np.cos((x - y + 2 * time) / 8)
    blue = np.sin((y + 2 * time) / 6)
    return np.rint(127.5 + 90 * np.stack([red, green, blue], -1)).astype(np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: str = "",
    *,
    rate: Fraction | int = 25,
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    container: str = "",
    rotation: float | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Encodes frames; `times` are in milliseconds, options written as `name=value,...`."""
    with av.open(os.fspath(path), "w", options=_options(container)) as file:
        stream = cast(av.VideoStream, file.add_stream(codec, rate=rate, options=_options(options)))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            colours = "rgba" if array.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(array, format=colours).reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _options(text: str) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in text.split(",") if pair)
    return {name: value for name, value in pairs}
