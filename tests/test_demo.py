"""`python -m dynamicrafter_jax.demo`, as `make demo` runs it."""

import os
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import av
import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageOps

from dynamicrafter_jax import demo
from dynamicrafter_jax.data.synthetic import Renderer, draw_scene, trajectory

ROOT = Path(__file__).parent.parent
SLACK = 3  # of the time it may take, since other tests run beside it


def run(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynamicrafter_jax.demo", *map(str, arguments)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_demo_animates_photographs_and_drawn_scenes(tmp_path):
    started = time.perf_counter()
    done = run(f"--output_dir={tmp_path / 'demo'}", cache=tmp_path / "cache")
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert seconds < 60 * SLACK
    drawn = draw_scene(4, "test")
    first, last = (
        Renderer(drawn, 64, 64).frame(trajectory(drawn, 16).pose(frame)).astype(float)
        for frame in (0, 15)
    )
    pictures = {
        "coffee": photograph("coffee.jpg"),
        "drawn": first,
        "rocket_between": photograph("rocket.jpg"),
        "drawn_between": first,
    }
    files = [tmp_path / "demo" / f"{name}{end}" for name in pictures for end in (".mp4", ".png")]
    assert sorted((tmp_path / "demo").iterdir()) == sorted(files)
    for told in (*files, "the camera zooms in", drawn.caption, "64x64, enlarged 4 times"):
        assert str(told) in done.stdout

    gap, side = 4, 64
    for name, wanted in pictures.items():
        with av.open(str(tmp_path / "demo" / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == 16 * [(4 * side, 4 * side, 3)]
        frames = [frame[1::4, 1::4] for frame in frames]
        sheet = np.asarray(Image.open(tmp_path / "demo" / f"{name}.png").convert("RGB"))
        shown = sheet[gap : gap + side, gap : gap + side]
        assert np.abs(shown - wanted).mean() < 6  # cut out half a pixel apart
        left = side + 4 * gap
        for i, frame in enumerate(frames):
            y, x = gap + i // 8 * (side + gap), left + i % 8 * (side + gap)
            shown = sheet[y : y + side, x : x + side]
            assert np.abs(shown - frame.astype(float)).mean() < 20  # the video is compressed
        # The model was trained: its video starts from the picture, and leaves it.
        assert np.abs(frames[0] - wanted).mean() < 20
        assert np.abs(frames[-1] - wanted).mean() > np.abs(frames[0] - wanted).mean() + 2
        if name == "drawn_between":
            assert np.abs(frames[-1] - last).mean() < 20


def test_an_end_is_the_middle_of_its_beginning():
    still = demo.two_crops()
    assert still.end is not None
    h, w, _ = still.end.shape
    assert h == w and h / len(still.picture) == pytest.approx(0.65, abs=0.01)
    around = (len(still.picture) - h) // 2
    assert (still.picture[around : around + h, around : around + h] == still.end).all()


def test_videos_are_enlarged_by_a_whole_factor(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    still = demo.Still("name", video[0], "a prompt")
    for scale in (1, 3):
        demo._write(epath.Path(tmp_path), still, video, 8.0, scale)
        with av.open(str(tmp_path / "name.mp4")) as container:
            assert (container.streams.video[0].height, container.streams.video[0].width) == (
                20 * scale,
                24 * scale,
            )


def photograph(name: str) -> np.ndarray:
    picture = Image.open((resources.files("dynamicrafter_jax") / "assets" / name).open("rb"))
    return np.asarray(ImageOps.fit(picture, (64, 64), Image.Resampling.BICUBIC), float)


def test_a_place_that_cannot_be_written_is_noticed_first(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    done = run(f"--output_dir={occupied}", cache=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(occupied) in line
