import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from release_files import (
    FROZEN,
    different,
    files_in,
    learned,
    manifest,
    micro,
    micro_tensors,
    same_bits,
    write,
)

from dynamicrafter_jax import convert
from dynamicrafter_jax.config import config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import converted, load
from dynamicrafter_jax.weights.release import release_tensors, unused_tensors
from dynamicrafter_jax.weights.write_release import export

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("release") / "micro.safetensors", micro_tensors())


@pytest.fixture(scope="module")
def converted_model(tmp_path_factory, release_file):
    directory = tmp_path_factory.mktemp("converted") / "micro"
    convert.convert(release_file, directory, micro())
    return directory


def run_command(*arguments):
    command = [sys.executable, "-m", "dynamicrafter_jax.convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["tiny_v", "tiny_eps"])
def test_a_release_file_comes_back_bit_for_bit(tmp_path, golden, kind):
    theirs = learned(kind)
    path = write(tmp_path / "model.safetensors", theirs)
    directory, again = tmp_path / "model", tmp_path / "again.safetensors"
    config = ROOT / "tests" / "configs" / f"{kind}.py"
    steps = "--config.sampling.steps=7"
    done = run_command(f"--config={config}", steps, f"--input={path}", f"--output={directory}")
    assert (done.returncode, done.stderr) == (0, "")
    assert converted.read_config(directory).sampling.steps == 7
    done = run_command("--export", f"--input={directory}", f"--output={again}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{again}: ")

    ours = safetensors.numpy.load_file(again)
    assert {name: values.shape for name, values in ours.items()} == manifest(kind)
    assert {values.dtype for values in ours.values()} == {np.dtype(np.float32)}
    assert different(ours, theirs) == []
    with np.load(golden / "schedule.npz") as tables:
        release = {"tiny_v": "512", "tiny_eps": "256"}[kind]
        assert same_bits(ours["alphas_cumprod"], tables[f"alphas_cumprod_{release}"])


def test_the_directory_says_what_it_is(release_file, converted_model):
    description = converted.read_description(converted_model)
    digest = hashlib.sha256(release_file.read_bytes()).hexdigest()
    assert description["sources"] == [{"name": "micro.safetensors", "sha256": digest}]
    assert description["dtype"] == "float32"
    assert converted.read_config(converted_model) == micro()
    sections = {"unet", "vae", "text_encoder", "image_encoder", "projector"}
    assert {path.name for path in (converted_model / "params").iterdir()} == sections


def test_a_file_without_towers_is_completed(tmp_path, release_file):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    convert.convert(path, tmp_path / "model", micro(), towers=release_file)
    export(tmp_path / "model", tmp_path / "whole.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "whole.safetensors")
    assert different(ours, micro_tensors()) == []
    names = [source["name"] for source in converted.read_description(tmp_path / "model")["sources"]]
    assert names == ["unet.safetensors", "micro.safetensors"]


def test_what_exists_is_not_overwritten(tmp_path, release_file, converted_model):
    with pytest.raises(UserError, match="exists: give another path"):
        convert.convert(release_file, converted_model, micro())
    (tmp_path / "again.safetensors").write_bytes(b"precious")
    with pytest.raises(UserError, match="exists: give another path"):
        export(converted_model, tmp_path / "again.safetensors")
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        export(converted_model, tmp_path / "again.ckpt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="is not a converted model, so it is not overwritten"):
        convert.convert(release_file, tmp_path / "photos", micro(), overwrite=True)
    assert files_in(tmp_path) == ["again.safetensors", "photos", "photos/a.jpg"]
    with pytest.raises(UserError, match="is a file"):
        convert.convert(release_file, tmp_path / "again.safetensors", micro())


def test_overwriting_replaces_all_of_it(tmp_path, release_file):
    directory, path = tmp_path / "model", tmp_path / "again.safetensors"
    convert.convert(release_file, directory, micro())
    (directory / "stray").touch()
    config = micro()
    config.precision.param_dtype = "bfloat16"
    convert.convert(release_file, directory, config, overwrite=True)
    assert converted.read_config(directory) == config
    assert not (directory / "stray").exists()
    path.write_bytes(b"old")
    export(directory, path, overwrite=True)
    assert len(safetensors.numpy.load_file(path)) == len(micro_tensors()) + 13
    assert sorted(child.name for child in tmp_path.iterdir()) == ["again.safetensors", "model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_halfway_leaves_nothing_behind(tmp_path, release_file, monkeypatch, overwrite):
    directory = tmp_path / "model"
    if overwrite:
        convert.convert(release_file, directory, micro())
    before = files_in(tmp_path)
    saved = []

    def fail_at_third(place, tree):
        saved.append(place)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save_tree(place, tree)

    save_tree = converted.save_tree
    monkeypatch.setattr(converted, "save_tree", fail_at_third)
    with pytest.raises(UserError, match="No space left on device"):
        convert.convert(release_file, directory, micro(), overwrite=overwrite)
    assert len(saved) == 3 and saved[0].parent.exists() is False
    assert files_in(tmp_path) == before


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    theirs = micro_tensors()
    last = "image_proj_model.norm_out.bias"
    theirs[last] = theirs[last] * np.float32(np.nan)
    path = write(tmp_path / "model.safetensors", theirs)
    with pytest.raises(UserError, match=f"{last} holds NaN"):
        convert.convert(path, tmp_path / "model", micro())
    assert files_in(tmp_path) == ["model.safetensors"]


def run_with(**given):
    names = ("config", "input", "output", "dtype", "towers", "overwrite", "step", "averaged")
    convert.run({name: given.get(name) for name in (*names, "export", "export_dtype")})


def test_flags_are_checked(tmp_path, release_file, converted_model):
    there = {"output": str(tmp_path / "new"), "overwrite": False}
    for given, message in [
        ({**there}, "no --input"),
        ({"input": str(release_file)}, "no --output"),
        ({**there, "input": str(release_file)}, "no --config"),
        (
            {**there, "input": str(converted_model), "config": micro()},
            "is a converted model: to make",
        ),
        ({**there, "input": "x", "export": True, "towers": "y"}, "--towers does not go with"),
        ({**there, "input": "x", "export": True, "dtype": "bfloat16"}, "--dtype does not go with"),
        ({**there, "input": "x", "export_dtype": "float16"}, "--export_dtype needs --export"),
    ]:
        with pytest.raises(UserError, match=message):
            run_with(**given)
    assert files_in(tmp_path) == []


def test_the_summary_is_one_line(tmp_path, release_file, capsys):
    directory, path = str(tmp_path / "model"), str(tmp_path / "again.safetensors")
    given = {"config": micro(), "input": str(release_file), "output": directory}
    run_with(**given, dtype="bfloat16", overwrite=False)
    run_with(input=directory, output=path, export=True, overwrite=False)
    unused = unused_tensors(text_layers=2)
    sizes = [values.size for name, values in micro_tensors().items() if name not in unused]
    counts = f"{sum(sizes):,} parameters in {len(sizes)} tensors, 23 more carried, "
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{directory}: {counts}") and lines[0].endswith(" s")
    assert lines[1].startswith(f"{path}: {counts}")
    assert converted.read_description(directory)["dtype"] == "bfloat16"


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    given = (f"--input={tmp_path / 'model.safetensors'}", f"--output={tmp_path / 'model'}")
    done = run_command("--config=i2v_512", *given)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and "truncated" in done.stderr
    assert files_in(tmp_path) == ["model.safetensors"]


# Converts and exports while another thread watches how much memory is held besides mapped files.
WATCHED = """
import json, sys, threading, time

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

import jax
from dynamicrafter_jax import convert
from dynamicrafter_jax.config import config_from_json
from dynamicrafter_jax.weights import load, write_release

source, directory, target, config = sys.argv[1:]
config = config_from_json(json.loads(config))
boxed = load.abstract_params(config)
sizes = {
    name: sum(4 * leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in boxed.items()
}
report = {"sections": sizes}
for stage, work in {
    "convert": lambda: convert.convert(source, directory, config),
    "export": lambda: write_release.export(directory, target),
}.items():
    before, peak, done = held(), [0], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    report[stage] = peak[0] - before
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_no_more_than_a_section_is_held(tmp_path):
    config = micro()
    config.unet.update(model_channels=256, channel_mult=(1, 2), num_res_blocks=2)
    config.vae.update(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2)
    config.text_encoder.update(width=512, heads=8, layers=14)
    config.unet.context_dim = config.projector.output_dim = 512
    boxed = load.abstract_params(config)
    shapes = {name: tensor.shape for name, tensor in release_tensors(boxed).items()}
    constant = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    path = write(tmp_path / "model.safetensors", constant)
    del constant
    text = json.dumps(config_to_json(config))
    arguments = [str(path), str(tmp_path / "model"), str(tmp_path / "again.safetensors"), text]
    command = [sys.executable, "-c", WATCHED, *arguments]
    # What is freed leaves the process at once, so that only what is held is seen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    report = json.loads(done.stdout)
    mebibyte = 2**20
    sizes = sorted(report["sections"].values())
    assert sum(sizes) > 600 * mebibyte
    assert sizes[-1] < 0.7 * sum(sizes)
    assert report["convert"] < sizes[-1] + 150 * mebibyte
    # A section comes back in parts of 256 MiB, each held twice for a while.
    assert report["export"] < (2 * 256 + 100) * mebibyte < sum(sizes)
