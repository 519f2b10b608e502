"""The command itself, with the TPU compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MICRO = ROOT / "tests" / "configs" / "micro.py"

pytestmark = [
    pytest.mark.slow,  # the compiler takes minutes for a training step
    pytest.mark.usefixtures("tpu_compiler"),
]


def plan(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    taken = {"JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    words = [sys.executable, "-m", "dynamicrafter_jax.plan", f"--config={MICRO}", *flags]
    return subprocess.run(
        words, cwd=ROOT, env=environment | {"HOME": str(home)}, capture_output=True, text=True
    )


def test_sampling_is_planned_and_kept(tmp_path: Path):
    saved = tmp_path / "saved"
    flags = ("--topology=v5e:1x1", "--mode=sample", "--json", f"--save_executable={saved}")
    done = plan(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The compiler pads a few clips of a few frames more than it does many.
    assert 0.9 < found["summary"]["ratio"] < 1.3
    names = ["encode", "denoise", "decode"]
    assert [program["name"] for program in found["programs"]] == names
    assert {path.stem for path in saved.iterdir()} == set(names)
    again = plan(tmp_path, *flags[:-1])
    assert json.loads(again.stdout) == found


def test_training_from_a_cache_sends_what_fsdp_must(tmp_path: Path):
    done = plan(
        tmp_path,
        "--topology=v5e:2x2",
        "--mode=train",
        "--batch=4",
        "--cached",
        "--json",
        "--config.mesh.fsdp=4",
        "--config.train.accumulation=1",
        "--config.precision.dtype=bfloat16",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (step,) = found["programs"]
    assert step["name"] == "step"
    assert 1.0 < found["summary"]["ratio"] < 1.4
    assert step["collectives"]["all-gather"]["bytes"] > 0
    assert step["memory_bytes"]["optimizer"] > 0


def test_what_does_not_fit_is_status_1_and_one_line(tmp_path: Path):
    done = plan(
        tmp_path,
        "--topology=v5e:1x1",
        "--mode=sample",
        "--batch=20000",
        "--config.sampling.vae_frames=100000",
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "does not fit" in line and "try" in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--topology=v9:2x2", "--mode=sample"), "no chip"),
        (("--topology=v5e:2x2", "--mode=sample"), "mesh has 1 devices"),
        (("--topology=v5e:2x2",), "--mode"),
    ],
)
def test_mistakes_are_status_2_and_one_line(tmp_path: Path, flags: tuple[str, ...], told: str):
    done = plan(tmp_path, *flags)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and told in line
