"""Bulk jobs on the smallest model: in this process, or as a user starts them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import golden_weights
import numpy as np
import tiny
from PIL import Image
from quick import xla_flags
from safetensors.numpy import save_file

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.bulk.encoder import Row
from dynamicrafter_jax.sampling.sampler import Sampler
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.release import release_tensors

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests/cases"
CONFIG = ROOT / "tests/configs/micro.py"
STEPS = 2


def pictures(folder: Path, count: int = 4) -> None:
    """Writes `0.png`, `1.png`, ..., no two alike."""
    draw = np.random.default_rng(0)
    for i in range(count):
        values = draw.integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(values).resize((48, 32)).save(folder / f"{i}.png")


def table(folder: Path, rows: Iterable[dict[str, Any]], name: str = "table.jsonl") -> Path:
    """Writes a table beside its pictures."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def requests(path: Path, **options: Any) -> list[bulk.Request]:
    """Reads a table for the smallest model and few steps."""
    section = load_config(CONFIG).sampling.copy_and_resolve_references()
    section.steps = STEPS
    return bulk.read_requests(path, section, **options)


def read(wanted: Sequence[bulk.Request], folder: Path) -> list[Row]:
    """Reads the images of requests."""
    loader = bulk.Loader(bulk.Manifest(folder / "none"), {}, 77)
    return list(loader.load([loader.inspect(request) for request in wanted]).rows)


class Job:
    """A job in this process, whose networks stay compiled from one run to the next."""

    def __init__(self, output_dir: Path, batch_size: int, sampler: Sampler | None = None) -> None:
        model = tiny.micro()
        self.folder = output_dir
        self.batch_size = batch_size
        self.made_from: dict[str, Any] = {"weights": "made up"}
        self.sample = bulk.BatchSampler(sampler or model.sampler, model.params, batch_size)
        self.runs: list[list[str]] = []

    def __call__(self, path: Path, **options: Any) -> bulk.Summary:
        """Runs what is not finished, and brings the manifest into order."""
        wanted = requests(path, **options)
        manifest = bulk.Manifest(self.folder)
        loader = bulk.Loader(manifest, self.made_from, 77)
        writer = bulk.Writer(
            manifest,
            str(self.folder),
            codec="libx264",
            crf=18,
            made_with=self.made_from,
            details={},
        )
        made: list[str] = []
        self.runs.append(made)
        run = bulk.BulkRun(
            self.sample,
            lambda batch: loader.load([loader.inspect(request) for request in batch]),
            writer,
            written=lambda one, seconds: made.append(one.request.name),
        )
        summary = run(bulk.plan_batches(wanted, self.batch_size))
        manifest.compact([request.name for request in wanted])
        return summary

    def videos(self) -> dict[str, bytes]:
        """What lies in the folder."""
        return videos(self.folder)

    def lines(self) -> list[dict[str, Any]]:
        """The manifest, without times."""
        return lines(self.folder)


def videos(folder: Path) -> dict[str, bytes]:
    """The bytes of all videos of a folder."""
    return {file.name: file.read_bytes() for file in folder.glob("*.mp4")}


def lines(folder: Path) -> list[dict[str, Any]]:
    """A folder's manifest, without the one field that tells times."""
    found = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def weights(folder: Path) -> Path:
    """Writes the weights of the smallest model as a release file."""
    tensors = release_tensors(abstract_params(load_config(CONFIG)))
    made = {name: golden_weights.tensor(name, tensor.shape) for name, tensor in tensors.items()}
    save_file({name: np.asarray(values) for name, values in made.items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


def start(path: Path, output_dir: Path, checkpoint: Path, *flags: str, devices: int = 1) -> Any:
    """Starts `sample.py` on a table; flags come last, so they win."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        str(ROOT / "sample.py"),
        f"--config={CONFIG}",
        f"--checkpoint={checkpoint}",
        f"--prompts={path}",
        f"--output_dir={output_dir}",
        f"--config.sampling.steps={STEPS}",
        *flags,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    """Waits for the end of a job and returns what it said, on stdout and on stderr."""
    said, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return said, errors
