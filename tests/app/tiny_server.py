"""The page with the smallest model, for the tests: `python tiny_server.py OPTIONS`, as JSON.

Prints its address when it is open. Every file that is opened from then on is noted: `w` or `r`, and
its path, a line each.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from dynamicrafter_jax.app import serving
from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.pipeline import Clips, ImageToVideo

# Which arguments of an event are a path, and the open folder that it starts from.
_CHANGING = {
    "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.rename": [(0, 2), (1, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)],
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Slow(ImageToVideo):
    """The smallest model, with a pause in each step, so that there is time to stop it."""

    pause = 0.0

    def sample(self, *args: Any, progress: Any = None, **options: Any) -> Clips:
        def report(stage: str, done: int, total: int) -> None:
            if stage == "denoise":
                time.sleep(self.pause)
            if progress is not None:
                progress(stage, done, total)

        return super().sample(*args, progress=report, **options)


def note_files(log: Path) -> None:
    """Writes down what is opened, made, moved or removed from now on."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(kind: str, path: str | bytes, folder: int = -1) -> None:
        base = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
        os.write(
            file, f"{kind} {os.path.normpath(os.path.join(base, os.fsdecode(path)))}\n".encode()
        )

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            write("w" if args[2] & _WRITING else "r", args[0])
        for path, folder in _CHANGING.get(event, ()):
            write("w", args[path], args[folder])

    sys.addaudithook(note)


def main() -> None:
    options = json.loads(sys.argv[1])
    workdir, log = Path(options.pop("workdir")), Path(options.pop("log"))
    Slow.pause = options.pop("pause", 0.0)
    config = load_config(Path(__file__).parents[1] / "configs" / "micro.py")
    config.sampling.update(steps=2, guidance_scale=1.0)  # one pass compiles sooner than two
    names = options.pop("names", ["demo"])
    catalogue = ModelCatalogue(names, load=lambda name: Slow.from_random(config))

    def opened(address: str) -> None:
        note_files(log)
        print(address, flush=True)

    serving.serve(catalogue, serving.Site(port=0, workdir=workdir, **options), opened)


if __name__ == "__main__":
    main()
