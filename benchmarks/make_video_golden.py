"""Records what another build of ffmpeg shows for the videos in `tests/video_twists.py`.

    pip install imageio-ffmpeg==0.8.1
    python benchmarks/make_video_golden.py tests/golden/videos.json

The build is the one in that package, run as a program: it decodes and rotates the frames, and
prints the times at which they are shown. The tests compare these numbers with the reader of this
package, which uses the libraries in PyAV.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import video_twists


def main() -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pin what another build of ffmpeg shows.")
    parser.add_argument("output", type=Path, help="where to")
    arguments = parser.parse_args()
    program = cast(Any, importlib.import_module("imageio_ffmpeg")).get_ffmpeg_exe()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            f"{json.dumps(case.name)}: {json.dumps(shown(program, case, Path(folder)))}"
            for case in video_twists.cases()
        ]
    arguments.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


def shown(program: str, case: video_twists.Case, folder: Path) -> list[str | float | None]:
    """Returns the frames that are shown, and how many there are per second.

    The rate is None for a single frame, and if the program guesses the times.
    """
    command = [program, "-nostdin", "-i", str(case.make(folder)), "-vf", "showinfo"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    run = subprocess.run(command, capture_output=True, check=True)
    log = run.stderr.decode(errors="replace")
    width, height = map(int, re.findall(r"Video: rawvideo.*?, (\d+)x(\d+)", log)[-1])
    video = np.frombuffer(run.stdout, np.uint8).reshape(-1, height, width, 3)
    times = [float(time) for time in re.findall(r" n: *\d+ pts: *\S+ +pts_time:(\S+)", log)]
    assert len(times) == len(video)
    guessed = case.name.startswith("times of decoding")
    rate = None
    if len(times) > 1 and not guessed:
        rate = round((len(times) - 1) / (max(times) - min(times)), 4)
    return [case.picture.describe(video), rate]


if __name__ == "__main__":
    sys.exit(main())
