"""`python -m dynamicrafter_jax.demo`, as `make demo` runs it."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

ROOT = Path(__file__).parent.parent


def run(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynamicrafter_jax.demo", *map(str, arguments)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_demo_animates_the_photograph(tmp_path):
    done = run(f"--output_dir={tmp_path / 'demo'}", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    video, sheet = tmp_path / "demo" / "rocket.mp4", tmp_path / "demo" / "rocket.png"
    assert sorted((tmp_path / "demo").iterdir()) == [video, sheet]
    for path in (video, sheet):
        assert str(path) in done.stdout
    assert "untrained" in done.stdout and "random" in done.stdout

    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == 16 * [(64, 64, 3)]
    assert np.ptp(frames[0]) > 0

    picture = np.asarray(Image.open(sheet).convert("RGB"))
    gap, side = 4, 64
    photograph = Image.open(
        (resources.files("dynamicrafter_jax") / "assets" / "rocket.jpg").open("rb")
    )
    wanted = np.asarray(ImageOps.fit(photograph, (side, side), Image.Resampling.BICUBIC), float)
    shown = picture[gap : gap + side, gap : gap + side]
    assert np.abs(shown - wanted).mean() < 6  # thin towers, cut out half a pixel apart
    left = side + 4 * gap
    for i, frame in enumerate(frames):
        y, x = gap + i // 8 * (side + gap), left + i % 8 * (side + gap)
        shown = picture[y : y + side, x : x + side]
        assert np.abs(shown - frame.astype(float)).mean() < 20  # the video is compressed


def test_a_place_that_cannot_be_written_is_noticed_first(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    done = run(f"--output_dir={occupied}", cache=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(occupied) in line
