"""Compares the speed of reading training clips with other readers, on the same files.

    python benchmarks/loader.py           a few minutes
    python benchmarks/loader.py --quick   one file, to see that it works

Each reader opens an H.264 file, takes 16 frames at a stride of 1 to 6, and converts them to 320x512
in RGB in its own best way, in one thread. All readers get the same clips in turns, each in a
separate process, and their processor time is counted. The exit status is 1 if ours is slower than
the fastest by more than a twentieth. To install readers to compare with: `pip install decord
torchcodec` (torchcodec also needs torch and ffmpeg's shared libraries).
"""

import argparse
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from dynamicrafter_jax.data.videos import decoding
from dynamicrafter_jax.media import read_picture
from dynamicrafter_jax.media.cropping import cover

HEIGHT, WIDTH, NUM_FRAMES = 320, 512, 16
FPS, SECONDS = 30, 10
STRIDES = (1, 6)
PAR = 0.95

Reader = Callable[[str, Sequence[int]], np.ndarray]


class File(NamedTuple):
    """A video to read.

    Attributes:
        width: Width of its frames, in pixels.
        height: Height of its frames, in pixels.
        gop: The largest distance between frames at which decoding can start.
        b_frames: Whether frames may depend on later ones, which is the default of encoders.
    """

    width: int
    height: int
    gop: int
    b_frames: bool = True

    def __str__(self) -> str:
        kind = "" if self.b_frames else ", no B-frames"
        return f"{self.width}x{self.height}, GOP {self.gop}{kind}"


FILES = (
    File(640, 360, 250),
    File(640, 360, 60),
    File(640, 360, 60, b_frames=False),
    File(1280, 720, 250),
    File(1280, 720, 60),
)


def ours() -> Reader:
    """`dynamicrafter_jax.data.videos.decoding`."""

    def read(path: str, indices: Sequence[int]) -> np.ndarray:
        with decoding.open_video(path, path) as video:
            return video.read(indices, HEIGHT, WIDTH)

    return read


def pyav() -> Reader:
    """PyAV: seeks to a key frame, decodes to the last frame, scales while converting to RGB."""

    def read(path: str, indices: Sequence[int]) -> np.ndarray:
        frames, wanted = [], set(indices)
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            assert stream.time_base is not None
            ticks = round(1 / (FPS * stream.time_base))
            container.seek(indices[0] * ticks, stream=stream)
            h, w = _covering(stream.height, stream.width)
            for frame in container.decode(stream):
                index = (frame.pts or 0) // ticks
                if index in wanted:
                    frames.append(
                        frame.to_ndarray(
                            format="rgb24", height=h, width=w, interpolation="BICUBIC", threads=1
                        )
                    )
                if index >= indices[-1]:
                    break
        return np.stack([_cut(frame) for frame in frames])

    return read


def decord() -> Reader:
    """decord: scales while decoding."""
    library = cast(Any, importlib.import_module("decord"))

    def read(path: str, indices: Sequence[int]) -> np.ndarray:
        h, w = _covering(*_size(path))
        video = library.VideoReader(path, library.cpu(0), width=w, height=h, num_threads=1)
        return _cut(video.get_batch(list(indices)).asnumpy())

    return read


def torchcodec(seek_mode: str = "exact") -> Reader:
    """torchcodec: scales and crops while decoding."""
    cast(Any, importlib.import_module("torch")).set_num_threads(1)
    decoders = cast(Any, importlib.import_module("torchcodec.decoders"))
    transforms = cast(Any, importlib.import_module("torchcodec.transforms"))

    def read(path: str, indices: Sequence[int]) -> np.ndarray:
        h, w = _covering(*_size(path))
        steps = [transforms.Resize((h, w)), transforms.CenterCrop((HEIGHT, WIDTH))]
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "seek_mode": seek_mode}
        video = decoders.VideoDecoder(path, transforms=steps, **options)
        return video.get_frames_at(list(indices)).data.numpy()

    return read


def torchcodec_approximate() -> Reader:
    """torchcodec, trusting the file's header for the times of frames."""
    return torchcodec("approximate")


# The names in the table, with how to make the reader and the package that it comes from.
READERS: dict[str, tuple[Callable[[], Reader], str]] = {
    "ours": (ours, "av"),
    "PyAV": (pyav, "av"),
    "decord": (decord, "decord"),
    "torchcodec": (torchcodec, "torchcodec"),
    "torchcodec, approximate": (torchcodec_approximate, "torchcodec"),
}


def main() -> int:
    """Makes the files, and prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare with other readers of video.")
    parser.add_argument("--quick", action="store_true", help="one file and few clips")
    parser.add_argument("--folder", type=Path, help="keep the files here, or use those there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        files = {make_file(folder, file): file for file in FILES[: 1 if arguments.quick else None]}
        _say(f"Made with {environment()}.\n")
        worst = compare_readers(files, *((4, 2) if arguments.quick else (24, 5)))
        compare_filters(next(iter(files)))
    return 0 if worst >= PAR else 1


def compare_readers(files: dict[str, File], num_clips: int, repeats: int) -> float:
    """Prints the table of readers; returns our worst speed, relative to the fastest other."""
    pools = {name: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for name in READERS}
    missing = {name: pool.submit(_prepare, name).result() for name, pool in pools.items()}
    installed = [name for name in READERS if not missing[name]]
    _row("video", "reader", "clips/s a core", "ours is faster by", "PSNR to ours")
    _row(*["---"] * 5)
    worst = math.inf
    for path, file in files.items():
        rng = np.random.default_rng(0)
        clips = [_clip(rng) for _ in range(num_clips)]
        seconds: dict[str, list[float]] = {name: [] for name in installed}
        for repeat in range(repeats):
            turn = repeat % len(installed)
            for name in installed[turn:] + installed[:turn]:
                seconds[name].append(pools[name].submit(_seconds, path, clips).result())
        rates = {name: num_clips / median(times) for name, times in seconds.items()}
        shown = {name: pools[name].submit(_read, path, clips[0]).result() for name in installed}
        for name in READERS:
            if name not in installed:
                _row(str(file), name, "not installed", "", "")
                continue
            ratio = "" if name == "ours" else f"{rates['ours'] / rates[name]:.2f}"
            quality = "" if name == "ours" else psnr(shown[name], shown["ours"])
            _row(str(file), name, f"{rates[name]:.1f}", ratio, quality)
        fastest = max(rate for name, rate in rates.items() if name != "ours")
        worst = min(worst, rates["ours"] / fastest)
    for pool in pools.values():
        pool.shutdown()
    return worst


def compare_filters(path: str) -> None:
    """Prints the cost of ways to scale and convert, and how close they come to Pillow's result."""
    with av.open(path) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(60), strict=False)]
    accurate = {"format": "rgb24", "interpolation": decoding.FILTER, "threads": 1}
    pillow = [cover(frame.to_ndarray(**accurate), HEIGHT, WIDTH) for frame in frames[::20]]
    _say("")
    _row("filter", "pixels", "ms a frame", "PSNR to Pillow")
    _row(*["---"] * 4)
    ways = {
        "fast bilinear": Interpolation.FAST_BILINEAR,
        "bicubic": Interpolation.BICUBIC,
        "bicubic, accurate (ours)": decoding.FILTER,
    }
    for name, flags in ways.items():
        for pixels in ("gbrp", "rgb24"):
            reformatter = VideoReformatter()
            h, w = _covering(frames[0].height, frames[0].width)
            settings = {"format": pixels, "interpolation": flags, "threads": 1}
            times = []
            for frame in frames:
                start = time.process_time()
                reformatter.reformat(frame, w, h, **settings)
                times.append(time.process_time() - start)
            scaled = [reformatter.reformat(f, w, h, **settings) for f in frames[::20]]
            pictures = [_cut(frame.to_ndarray(format="rgb24")) for frame in scaled]
            quality = psnr(np.stack(pictures), np.stack(pillow))
            _row(name, pixels, f"{1000 * median(times):.2f}", quality)


def make_file(folder: Path, file: File) -> str:
    """Encodes a view moving over photographs, unless the file exists; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{file.width}x{file.height}_gop{file.gop}{'' if file.b_frames else '_no_b'}.mp4"
    path, unfinished = folder / name, folder / f"unfinished_{name}"
    if path.exists():
        return os.fspath(path)
    options = {"crf": "23", "g": str(file.gop)} | ({} if file.b_frames else {"bf": "0"})
    with av.open(os.fspath(unfinished), "w", options={"movflags": "+faststart"}) as container:
        stream = cast(av.VideoStream, container.add_stream("libx264", rate=FPS, options=options))
        stream.height, stream.width, stream.pix_fmt = file.height, file.width, "yuv420p"
        for picture in _views(file.height, file.width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return os.fspath(unfinished.rename(path))


def _views(height: int, width: int) -> Iterator[np.ndarray]:
    """Yields frames that pan and zoom, with camera grain, over photographs in the package."""
    assets = Path(decoding.__file__).parent.parent / "assets"
    photographs = [cover(read_picture(assets / f"{n}.jpg"), 426, 640) for n in ("coffee", "rocket")]
    rows = [[p[:, ::flip] for flip in (1, -1, 1)] for p in photographs]
    wall = np.concatenate([np.concatenate(rows[i], axis=1) for i in (0, 1, 0)])
    scene = Image.fromarray(wall).resize((1920 * width // 1280, 1278 * width // 1280))
    grain = np.random.default_rng(0)
    for i in range(FPS * SECONDS):
        t = i / FPS
        w, h = (side * (0.9 + 0.08 * math.sin(0.7 * t)) for side in (width, height))
        x = (scene.width - w) / 2 * (1 + 0.9 * math.sin(0.5 * t + 1))
        y = (scene.height - h) / 2 * (1 + 0.9 * math.sin(0.37 * t + 2))
        view = scene.resize((width, height), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
        noisy = np.asarray(view) + grain.normal(0, 2.5, (height, width, 1))
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> str:
    """Returns the PSNR of two pictures in 0 .. 255, as text."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return f"{10 * math.log10(255**2 / error):.1f} dB" if error else "equal"


def environment() -> str:
    """Returns the versions and the kind of machine that a table was made with."""
    versions = [f"Python {platform.python_version()}"]
    for package in dict.fromkeys(package for _, package in READERS.values()):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{', '.join(versions)} on {machine}"


_prepared: dict[str, Reader] = {}


def _prepare(name: str) -> str:
    """Imports a reader in its process; returns what it lacks."""
    make, _ = READERS[name]
    try:
        _prepared["reader"] = make()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error) or name
    return ""


def _read(path: str, indices: Sequence[int]) -> np.ndarray:
    return _prepared["reader"](path, indices)


def _seconds(path: str, clips: Sequence[Sequence[int]]) -> float:
    """Returns the processor time of reading clips, over all threads of the process."""
    _read(path, clips[0])
    start = time.process_time()
    for indices in clips:
        assert _read(path, indices).shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    return time.process_time() - start


def _clip(rng: np.random.Generator) -> list[int]:
    stride = int(rng.integers(STRIDES[0], STRIDES[1] + 1))
    span = stride * (NUM_FRAMES - 1) + 1
    start = int(rng.integers(0, FPS * SECONDS - span + 1))
    return list(range(start, start + span, stride))


def _size(path: str) -> tuple[int, int]:
    """Returns height and width from a file's name: other readers have no cheap way to find out."""
    width, height = Path(path).name.split("_")[0].split("x")
    return int(height), int(width)


def _covering(height: int, width: int) -> tuple[int, int]:
    scale = max(HEIGHT / height, WIDTH / width)
    return round(height * scale), round(width * scale)


def _cut(frames: np.ndarray) -> np.ndarray:
    h, w = frames.shape[-3:-1]
    top, left = (h - HEIGHT) // 2, (w - WIDTH) // 2
    return frames[..., top : top + HEIGHT, left : left + WIDTH, :]


def _row(*cells: str) -> None:
    _say(f"| {' | '.join(cells)} |")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
