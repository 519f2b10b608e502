"""`python -m dynamicrafter_jax.evaluate` as a person runs it."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bulk_jobs
import evaluation_sets
import i3d_files
import pytest
import safetensors.numpy

ROOT = Path(__file__).parent.parent.parent


def start(*flags, status=0):
    command = [sys.executable, "-m", "dynamicrafter_jax.evaluate", *map(str, flags)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUMPY", "XLA_"))}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def small(folder, name="folders", **sections):
    path = folder / "small.json"
    path.write_text(json.dumps(evaluation_sets.protocol(name, **sections).as_json()))
    return path


def test_two_folders_and_again(tmp_path):
    evaluation_sets.arrays(tmp_path / "real", 10)
    evaluation_sets.arrays(tmp_path / "made", 10, noise=20)
    flags = [f"--protocol={small(tmp_path)}", f"--videos={tmp_path / 'made'}"]
    flags += [f"--reference={tmp_path / 'real'}", f"--output={tmp_path / 'out'}"]
    said, _ = start(*flags, "--measures=frames")
    assert "| motion_degree |  | 0." in said and "report.md: protocol folders" in said
    report = json.loads((tmp_path / "out/report.json").read_text())
    scores = report["sets"]["videos"]["scores"]
    assert set(scores) == {"first_frame_psnr", "first_frame_ssim", "motion_degree"}
    assert scores["motion_degree"]["value"] > scores["motion_degree"]["against"]
    assert report["videos"] == str(tmp_path / "made") and "jax" in report["environment"]["versions"]
    assert len((tmp_path / "out/clips.jsonl").read_text().splitlines()) == 10
    # FVD is wanted unless it is said otherwise, and its weights are asked for.
    _, errors = start(*flags, status=2)
    assert errors.startswith("error: no --i3d: FVD and KVD need the weights of I3D, such as i3d")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos=a"], "give --reference"),
        (
            ["--reference=a", "--videos=b", "--protocol=ucf101"],
            "the protocol ucf101 needs --data, its own data set",
        ),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    said, errors = start(*flags, status=2)
    assert said == "" and len(errors.splitlines()) == 1 and message in errors


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    evaluation_sets.arrays(tmp_path / "real", 10)
    evaluation_sets.arrays(tmp_path / "made", 10, noise=20)
    flags = [f"--protocol={small(tmp_path)}", f"--videos={tmp_path / 'made'}", "--measures=frames"]
    flags.append(f"--reference={tmp_path / 'real'}")
    alone, together = tmp_path / "alone", tmp_path / "together"
    start(*flags, f"--output={alone}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags += [f"--output={together}", f"--coordinator_address={address}", "--num_processes=2"]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda i: start(*flags, f"--process_id={i}")[0], range(2)))
    assert "motion_degree" in said[0] and said[1] == ""
    ours, theirs = (json.loads((f / "report.json").read_text())["sets"] for f in (together, alone))
    assert ours["videos"]["scores"] == theirs["videos"]["scores"]
    parts = [file.name for file in (together / "features/videos").rglob("*.npz")]
    assert sorted(parts) == ["part-00000-000000.npz", "part-00001-000000.npz"]


@pytest.mark.slow
def test_a_model_through_all_networks(tmp_path):
    """I3D at full size, with weights that were made up: plumbing only."""
    evaluation_sets.arrays(tmp_path / "real", 4)
    for i in range(4):
        (tmp_path / "real" / f"clip_{i}.txt").write_text("a pattern")
    safetensors.numpy.save_file(i3d_files.weights(), tmp_path / "i3d.safetensors")
    steps = {"sampling": {"steps": 2}, "frames": {"count": 9}, "fs": {"value": 8}}
    flags = [
        f"--protocol={small(tmp_path, 'demo', **steps)}",
        f"--data={tmp_path / 'real'}",
        f"--config={bulk_jobs.CONFIG}",
        f"--checkpoint={bulk_jobs.weights(tmp_path)}",
        f"--i3d={tmp_path / 'i3d.safetensors'}",
        f"--output={tmp_path / 'out'}",
        "--through_mp4",
    ]
    start(*flags)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert set(report["sets"]) == {"videos", "videos_through_mp4_libx264_18"}
    found = [one["scores"]["FVD"]["value"] for one in report["sets"].values()]
    assert found[0] > 0 and found[0] != found[1]
    assert report["measured_now"]["clips"] == 12
    start(*flags)
    again = json.loads((tmp_path / "out/report.json").read_text())
    assert again["measured_now"]["clips"] == 0
    assert [one["scores"]["FVD"]["value"] for one in again["sets"].values()] == found
