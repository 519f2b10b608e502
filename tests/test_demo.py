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
from PIL import Image, ImageOps

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
def test_demo_animates_a_photograph_and_a_drawn_scene(tmp_path):
    started = time.perf_counter()
    done = run(f"--output_dir={tmp_path / 'demo'}", cache=tmp_path / "cache")
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert seconds < 60 * SLACK
    drawn = draw_scene(4, "test")
    pictures = {
        "coffee": photograph("coffee.jpg"),
        "drawn": Renderer(drawn, 64, 64).frame(trajectory(drawn, 1).pose(0)).astype(float),
    }
    files = [tmp_path / "demo" / f"{name}{end}" for name in pictures for end in (".mp4", ".png")]
    assert sorted((tmp_path / "demo").iterdir()) == sorted(files)
    for told in (*files, "the camera zooms in", drawn.caption):
        assert str(told) in done.stdout

    gap, side = 4, 64
    for name, wanted in pictures.items():
        with av.open(str(tmp_path / "demo" / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == 16 * [(side, side, 3)]
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
