"""The page of `tiny_server.py` as a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def needed(what: str, there: bool, how: str) -> None:
    """Skips a test where something is missing; where all must run, that is a failure."""
    if not there:
        message = f"{what} is not installed: {how}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


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
    needed("gradio", find_spec("gradio") is not None, 'pip install "dynamicrafter-jax[app]"')
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
