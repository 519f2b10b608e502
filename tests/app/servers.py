"""The page of `tiny_server.py` as a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from needed import module_needed

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass
class Server:
    """A server that runs.

    Attributes:
        address: Of its page.
        workdir: The folder of its files.
        log: What it opened, see `tiny_server.py`.
        process: It.
    """

    address: str
    workdir: Path
    log: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Server]:
    """Runs a server in `folder`, with options of `serving.Site` and of `tiny_server.py`."""
    module_needed("gradio", "gradio", "app")
    workdir, log = folder / "workdir", folder / "opened.txt"
    # Strictness is for our own tests; a person's session has none of it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [
            sys.executable,
            str(HERE / "tiny_server.py"),
            json.dumps({"workdir": str(workdir), "log": str(log), **options}),
        ],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), f"no address, but {address!r}"
        yield Server(address, workdir, log, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
