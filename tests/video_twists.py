"""Videos as people have them: each codec in each container that takes it, and what goes wrong.

What another build of ffmpeg shows of these files stands in `data/videos.json`, which
`benchmarks/make_video_golden.py` made.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
import video_files
from av.bitstream import BitStreamFilterContext

COUNT = 20

CASES = Path(__file__).parent / "cases"

# Codec -> encoder, its options and pixels. Several keys, and frames that refer to later ones.
_ENCODERS: dict[str, tuple[str, str, str]] = {
    "h264": ("libx264", "preset=veryfast,bf=2,g=8,x264-params=scenecut=0:log-level=-1", "yuv420p"),
    "hevc": ("libx265", "preset=ultrafast,x265-params=keyint=8:bframes=2:log-level=-1", "yuv420p"),
    "vp8": ("libvpx", "g=8,cpu-used=8,deadline=realtime", "yuv420p"),
    "vp9": ("libvpx-vp9", "g=8,cpu-used=8,auto-alt-ref=1,lag-in-frames=8", "yuv420p"),
    "av1": ("libsvtav1", "preset=12,g=8,svtav1-params=log-level=0", "yuv420p"),
    "mpeg4": ("mpeg4", "bf=1,g=8,qscale=2", "yuv420p"),
    "mpeg4 without B-frames": ("mpeg4", "bf=0,g=8,qscale=2", "yuv420p"),
    "mpeg4 with two B-frames": ("mpeg4", "bf=2,g=20,qscale=2", "yuv420p"),
    "gif": ("gif", "", "rgb8"),
}

# Container -> codecs that ffmpeg writes into it.
PAIRS: dict[str, tuple[str, ...]] = {
    "mp4": ("h264", "hevc", "vp9", "av1", "mpeg4"),
    "mov": ("h264", "hevc", "mpeg4", "gif"),
    "mkv": ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4"),
    "webm": ("vp8", "vp9", "av1"),
    "avi": ("h264", "vp8", "vp9", "av1", "mpeg4"),
    "ts": ("h264", "hevc", "mpeg4"),
    "flv": ("h264", "hevc", "vp9", "av1"),
    "gif": ("gif",),
}

# What a container wants of a codec that comes out of another one.
_FILTERS = {("h264", "avi"): "h264_mp4toannexb", ("mpeg4", "ts"): "dump_extra"}

# Milliseconds, in whole hundredths of a second.
IRREGULAR = (np.cumsum(np.random.default_rng(0).integers(2, 12, COUNT)) * 10).tolist()

MATRICES: dict[str, tuple[int, ...]] = {
    f"{'transposed ' * t}{x:+}{y:+}": (
        *((0, y, 0, x, 0) if t else (x, 0, 0, 0, y)),
        *(0, 0, 0, 1 << 14),
    )
    for t in (0, 1)
    for x in (1, -1)
    for y in (1, -1)
}
"""The eight display matrices, as QuickTime has them, in units of 1 / 65536."""

# Whether the information in a stream says left to right, top to bottom, and quarters
# counterclockwise after that, for the same eight.
_SEI = {
    "+1+1": (0, 0, 0),
    "+1-1": (0, 1, 0),
    "-1+1": (1, 0, 0),
    "-1-1": (0, 0, 2),
    "transposed +1+1": (1, 0, 1),
    "transposed +1-1": (0, 0, 1),
    "transposed -1+1": (0, 0, 3),
    "transposed -1-1": (0, 1, 1),
}

Change = Callable[[list[av.Packet]], list[av.Packet]]


class Picture(NamedTuple):
    """What the frames of a file are like.

    Attributes:
        size: Height and width to read them at, as they are shown.
        describe: What they show, in a word or two.
    """

    size: tuple[int, int]
    describe: Callable[[np.ndarray], str]


class Case(NamedTuple):
    """A file to be made.

    Attributes:
        name: As `kind codec.extension`.
        make: Writes it into a folder, and returns its path.
        picture: What its frames are like.
    """

    name: str
    make: Callable[[Path], Path]
    picture: Picture


def corners() -> np.ndarray:
    """Some frames (6, 64, 96, 3): red and green over blue and white."""
    frame = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
    return np.repeat(frame.repeat(32, 0).repeat(48, 1)[None], 6, 0)


def letters(video: np.ndarray) -> str:
    """The colours in the corners of frames, row by row: "6 x RGBW" if all are alike."""
    h, w = (side // 4 for side in video.shape[1:3])
    places = video[:, h :: 2 * h, w :: 2 * w][:, :2, :2].reshape(-1, 4, 3) > 127
    names = {4: "R", 2: "G", 1: "B", 7: "W"}
    frames = ["".join(names.get(int(c), "?") for c in frame) for frame in places @ (4, 2, 1)]
    return f"{len(frames)} x {' '.join(dict.fromkeys(frames))}"


def ranges(numbers: list[int]) -> str:
    """Numbers as text, with a dash for those that follow one another: "0-6 8"."""
    text = ""
    for before, number, after in zip([-2, *numbers], numbers, [*numbers[1:], -2], strict=False):
        if number != before + 1 or after != number + 1:
            text += ("-" if number == before + 1 else " ") + str(number)
    return text.strip()


def bars(video: np.ndarray) -> list[int]:
    """Half the width of the white bar in each frame."""
    return np.rint((video[:, :8, :, 0] > 127).sum(2).mean(1) / 2).astype(int).tolist()


NUMBERS = Picture(
    (video_files.HEIGHT, video_files.WIDTH), lambda video: ranges(video_files.numbers(video))
)
CORNERS = Picture((64, 64), letters)
BARS = Picture((96, 128), lambda video: ranges(bars(video)))


def cases() -> Iterator[Case]:
    """All files of the table."""
    for extension, codecs in PAIRS.items():
        for codec in codecs:
            for kind, make in _kinds(codec, extension):
                is_turned = kind.startswith(("matrix", "sei"))
                is_reported = (kind, codec) == ("hidden", "vp8")
                picture = CORNERS if is_turned else BARS if is_reported else NUMBERS
                yield Case(f"{kind} {codec}.{extension}", make, picture)


def _kinds(codec: str, extension: str) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """What there is of a codec in a container, and what makes it."""

    def made(
        change: Change = list,
        *,
        filters: str = "",
        matrix: tuple[int, ...] | None = None,
        frames: np.ndarray | None = None,
        times: Sequence[int] | None = None,
        codec: str = codec,
    ) -> Callable[[Path], Path]:
        shown = video_files.numbered(COUNT) if frames is None else frames
        needed = ",".join(
            f for f in (filters, _FILTERS.get((codec.split()[0], extension), "")) if f
        )

        def make(folder: Path) -> Path:
            source = encoded(folder, codec, shown, times)
            return copy(source, folder / f"video.{extension}", change, needed, matrix)

        return make

    yield "plain", made()
    yield "one frame", made(lambda packets: packets[:1])
    if extension != "avi":  # which has no times but the number
        yield "irregular", made(times=IRREGULAR)
        yield "late", made(partial(_delayed, 3600))
    if extension in ("mkv", "webm"):  # the others refuse them
        yield "equal times", made(_equal_times)
    for name, matrix in MATRICES.items():
        if extension in ("mp4", "mov", "mkv"):
            yield f"matrix {name}", made(matrix=matrix, frames=corners())
        if codec in ("h264", "hevc") and extension != "mov":  # the same as mp4
            yield f"sei {name}", made(partial(_with_sei, codec, name), frames=corners())
    if extension in ("mkv", "webm"):
        yield "rate untold", partial(_with_rate, codec, extension, bytes([0xEC, 0x86, *[0] * 6]))
        wrong = bytes([0x23, 0xE3, 0x83, 0x84, *(1_000_000).to_bytes(4)])  # a frame's nanoseconds
        yield "rate told wrong", partial(_with_rate, codec, extension, wrong)
    if extension == "ts":
        yield "twice", lambda folder: _twice(made()(folder))
        yield "start cut off", lambda folder: _cut(made()(folder))
        yield "clock set on", made(_clock_set_on)
    if codec in ("h264", "hevc", "mpeg4"):
        yield "times of decoding", made(_times_of_decoding)
    if codec in ("vp8", "vp9", "av1"):
        yield "hidden", partial(_hidden, codec, extension)
    if codec == "mpeg4":
        yield "packed", made(_packed)
        if extension in ("mp4", "mkv"):
            yield "packed, times guessed", made(_packed_badly, codec="mpeg4 with two B-frames")
        yield "empty", made(_partly_empty, codec="mpeg4 without B-frames")


def encoded(
    folder: Path, codec: str, frames: np.ndarray, times: Sequence[int] | None = None
) -> Path:
    """Encodes frames, unless that was done in this folder already."""
    encoder, options, pixels = _ENCODERS[codec]
    kind = f"{len(frames)}{'' if times is None else '_irregular'}"
    path = folder / f"{codec}_{kind}.{'mov' if codec == 'gif' else 'mkv'}"
    if not path.exists():
        video_files.write(path, frames, encoder, options, pixels=pixels, times=times)
    return path


def copy(
    source: Path,
    target: Path,
    change: Change = list,
    filters: str = "",
    matrix: tuple[int, ...] | None = None,
) -> Path:
    """Copies a video into another container, through filters of coded data and a change."""
    with av.open(os.fspath(source)) as file, av.open(os.fspath(target), "w") as out:
        stream = file.streams.video[0]
        context = BitStreamFilterContext(filters or "null", stream)
        packets = [q for p in file.demux(stream) for q in context.filter(p if p.size else None)]
        output = cast(av.VideoStream, out.add_stream_from_template(stream, opaque=True))
        if matrix:
            output.set_display_matrix([65536 * number for number in matrix])
        for packet in change(packets):
            packet.stream, packet.time_base = output, cast(Fraction, stream.time_base)
            out.mux(packet)
    return target


def _with_rate(codec: str, extension: str, element: bytes, folder: Path) -> Path:
    """Writes another element in place of what says how long a frame of Matroska lasts."""
    encoder, options, pixels = _ENCODERS[codec]
    path = folder / f"video.{extension}"
    frames = video_files.numbered(COUNT)
    data = video_files.write(path, frames, encoder, options, pixels=pixels).read_bytes()
    place = data.index(bytes([0x23, 0xE3, 0x83, 0x84]))
    path.write_bytes(data[:place] + element + data[place + 8 :])
    return path


def _hidden(codec: str, extension: str, folder: Path) -> Path:
    """A file where pictures that are not shown have packets of their own, if it can be."""
    source = CASES / f"{codec}_two_pass.webm"
    if codec == "av1":
        source = encoded(folder, codec, video_files.numbered(COUNT))
    split = {"vp9": "vp9_superframe_split", "av1": "av1_frame_split"}.get(codec, "")
    change = _one_by_one if extension == "avi" else _all_timed
    return copy(source, folder / f"video.{extension}", change, split)


def _twice(path: Path) -> Path:
    path.write_bytes(2 * path.read_bytes())
    return path


def _cut(path: Path) -> Path:
    """Leaves out the first key, as recordings of a broadcast do."""
    path.write_bytes(path.read_bytes()[16 * 188 :])
    return path


def _like(packet: av.Packet, data: bytes) -> av.Packet:
    """A packet of other data."""
    other = av.Packet(data)
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    other.is_keyframe = packet.is_keyframe
    return other


def _delayed(seconds: int, packets: list[av.Packet]) -> list[av.Packet]:
    for packet in packets:
        ticks = int(seconds / cast(Fraction, packet.time_base))
        packet.pts = cast(int, packet.pts) + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks
    return packets


def _clock_set_on(packets: list[av.Packet]) -> list[av.Packet]:
    """An hour goes by before the second key."""
    second = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
    return packets[:second] + _delayed(3600, packets[second:])


def _equal_times(packets: list[av.Packet]) -> list[av.Packet]:
    """The sixth packet says the time of the fifth."""
    time = cast(int, packets[4].pts)
    packets[5].pts = time
    packets[5].dts = None if packets[5].dts is None else min(packets[5].dts, time)
    return packets


def _times_of_decoding(packets: list[av.Packet]) -> list[av.Packet]:
    times = sorted(cast(int, packet.pts) for packet in packets)
    for packet, time in zip(packets, times, strict=True):
        packet.pts = packet.dts = time
    return packets


def _all_timed(packets: list[av.Packet]) -> list[av.Packet]:
    """Gives packets that show nothing a time, too: half a frame before the next one's."""
    after = None
    for packet in reversed(packets):
        if packet.pts is None:
            packet.pts = cast(int, after) - 10
        packet.dts = after = packet.pts
    return packets


def _with_sei(codec: str, name: str, packets: list[av.Packet]) -> list[av.Packet]:
    """Puts a message at the head of the first picture."""
    x, y, quarters = _SEI[name]
    # For H.264 it ends with a number, 1 in the code of Golomb, for HEVC with a bit.
    bits = x << 22 | y << 21 | quarters << 14 << 5 | (0b01010 if codec == "h264" else 0b11000)
    unit = (b"\6" if codec == "h264" else b"\x4e\1") + bytes([47, 3, *bits.to_bytes(3), 0x80])
    unit = unit.replace(b"\0\0", b"\0\0\3")
    data = bytes(packets[0])
    head = b"\0\0\0\1" if data.startswith(b"\0\0\0\1") else len(unit).to_bytes(4)
    return [_like(packets[0], head + unit + data), *packets[1:]]


def _one_by_one(packets: list[av.Packet]) -> list[av.Packet]:
    """Gives each packet a time of its own, whether it shows anything or not."""
    for i, packet in enumerate(packets):
        packet.pts = packet.dts = 40 * i
    return packets


_PICTURE = b"\0\0\1\xb6"
_SAYS_PACKED = b"\0\0\1\xb2DivX503b1393p"


def _empty(number: int) -> bytes:
    """A picture of MPEG-4 of type P, 1 / 25 s times a number below 25 after 0, and not coded."""
    return _PICTURE + (0b0101 << 12 | number << 7 | 0b1001111).to_bytes(2)


def _packed(packets: list[av.Packet]) -> list[av.Packet]:
    """Packs each picture with the one that is shown before it, as DivX does it."""
    data = [bytes(packet) for packet in packets]
    for i in range(1, len(data)):
        kind = data[i][data[i].index(_PICTURE) + 4] >> 6
        if kind == 2:
            data[i - 1], data[i] = data[i - 1] + data[i], _empty(i)
    data[0] = _SAYS_PACKED + data[0]
    return _times_of_decoding([_like(packet, d) for packet, d in zip(packets, data, strict=True)])


def _packed_badly(packets: list[av.Packet]) -> list[av.Packet]:
    """Packs two of three pictures, with the times of the second and the third one swapped."""
    kinds = [bytes(p)[bytes(p).index(_PICTURE) + 4] >> 6 for p in packets]
    data = [bytes(packet) for packet in packets]
    times = [cast(int, packet.pts) for packet in packets]
    for i in range(len(data) - 2):
        if kinds[i] != 2 and kinds[i + 1 : i + 3] == [2, 2]:
            data[i : i + 3] = data[i] + data[i + 1], data[i + 2], _empty(i)
            times[i + 1], times[i + 2] = times[i + 2], times[i + 1]
    data[0] = _SAYS_PACKED + data[0]
    packed = [_like(packet, d) for packet, d in zip(packets, data, strict=True)]
    for packet, time in zip(packed, times, strict=True):
        packet.pts, packet.dts = time, cast(int, packet.dts) - 40
    return packed


def _partly_empty(packets: list[av.Packet]) -> list[av.Packet]:
    """Where a picture was right before a key, the one before stays."""
    return [_like(p, _empty(i)) if i in (7, 15) else p for i, p in enumerate(packets)]
