"""Starts `train.py` on the smallest model, as a user would, and reads what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from quick import xla_flags

from dynamicrafter_jax.media import write_video

ROOT = Path(__file__).parent.parent


def make_videos(folder: Path, count: int = 5) -> Path:
    """Fills a folder with short videos, captions, and one file that is none."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        picture = draw.integers(0, 256, (4, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        video = np.stack([np.roll(picture, 3 * t, axis=1) for t in range(12)])
        write_video(folder / f"{i}.mp4", video, 8)
        (folder / f"{i}.txt").write_text(f"pattern {i} moves right")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def start(workdir: Path, videos: Path, *flags: str, devices: int = 1) -> subprocess.Popen:
    """Starts a run; flags come last, so they win."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config=tests/configs/micro.py",
        f"--workdir={workdir}",
        f"--config.data.source={videos}",
        "--config.data.workers=1",
        "--config.mesh.data=-1",
        "--config.train.steps=10",
        "--config.train.batch_size=8",
        "--config.train.accumulation=1",
        "--config.train.remat=none",  # quicker to compile
        "--config.train.learning_rate=1e-4",
        "--config.train.ema_decay=0.9",
        "--config.train.log_every=1",
        "--config.train.checkpoint_every=3",
        "--config.train.sample_every=0",
        *flags,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for the end of a run and returns what it said."""
    _, said = process.communicate(timeout=600)
    assert process.returncode == status, said.decode()
    return said.decode()


def noted(workdir: Path) -> list[dict[str, Any]]:
    """What a run noted; a line that is still being written does not count."""
    file = workdir / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def losses(workdir: Path) -> dict[int, float]:
    """The loss of each step that was noted."""
    return {values["step"]: values["loss"] for values in noted(workdir) if "loss" in values}


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by name."""
    import orbax.checkpoint as ocp

    found = {}
    for item in ("params", "opt_state", "ema"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.restore(workdir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found
