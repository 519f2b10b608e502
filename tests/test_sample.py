"""`sample.py` as a person runs it."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import golden_weights
import numpy as np
import programs
import pytest
import release_files
import tiny
from PIL import Image
from safetensors.numpy import save_file

from dynamicrafter_jax.media import read_video

ROOT = Path(__file__).parent.parent
CONFIGS = Path(__file__).parent / "configs"
LONG = "a " * 99 + "a"  # 100 tokens, of which the text encoder reads 75
RUNS = ["v_cfg", "v_interp", "v_loop", "v_multi", "eps_cfg", "eps_nocfg"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    # Strictness is for our own tests; a person's session has none of it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A file of golden weights for each small model, in the release's naming."""
    folder = tmp_path_factory.mktemp("checkpoints")
    micro = release_files.micro_tensors()
    files = {"micro": release_files.write(folder / "micro.safetensors", micro)}
    for kind in ("v", "eps"):
        files[kind] = folder / f"{kind}.safetensors"
        manifest = json.loads((tiny.GOLDEN / f"manifest_tiny_{kind}.json").read_text())
        save_file(golden_weights.build(manifest), files[kind])
    return files


def draw(path: Path) -> Path:
    """Draws a photograph of 120x80 pixels."""
    values = np.linspace(0, 255, 80 * 120 * 3).reshape(80, 120, 3).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def photograph(tmp_path) -> Path:
    return draw(tmp_path / "photograph.png")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_the_release_is_reproduced(tmp_path, checkpoints, relative_error, name):
    golden = tiny.golden(f"sample_{name}")
    settings = json.loads(str(golden["settings"]))
    kind = name.split("_")[0]
    np.save(tmp_path / "first.npy", golden["first"])
    np.save(tmp_path / "last.npy", golden["last"])
    sampling = {
        "steps": settings["steps"],
        "eta": settings["eta"],
        "guidance_scale": settings["guidance_scale"],
        "guidance_rescale": settings["guidance_rescale"],
        "spacing": settings["spacing"],
        "fps": settings["fs"],
    }
    if settings["image_guidance_scale"] is not None:
        sampling["image_guidance_scale"] = settings["image_guidance_scale"]
    done = programs.ran(
        "sample.py",
        f"--config={CONFIGS / f'tiny_{kind}.py'}",
        f"--checkpoint={checkpoints[kind]}",
        f"--image={tmp_path / 'first.npy'}",
        f"--prompt={settings['prompts'][0]}",
        f"--output={tmp_path / 'out.mp4'}",
        f"--noise={tiny.GOLDEN / f'sample_{name}.npz'}",
        f"--save_latents={tmp_path / 'latents.npy'}",
        f"--save_video={tmp_path / 'frames.npy'}",
        *(f"--config.sampling.{key}={value}" for key, value in sampling.items()),
        *([f"--end_image={tmp_path / 'last.npy'}"] if settings["interp"] else []),
        *(["--loop"] if settings["loop"] else []),
    )
    assert done.returncode == 0, done.stderr
    assert relative_error(np.load(tmp_path / "latents.npy"), golden["latents"][0]) < 1e-4
    frames = np.load(tmp_path / "frames.npy")
    assert relative_error(frames, golden["video"][0]) < 1e-4
    video, fps = read_video(tmp_path / "out.mp4")
    assert video.shape == (3 if settings["loop"] else 4, 64, 96, 3) and fps == 8
    # What random weights make is noise, of which H.264 keeps little but the brightness.
    wanted = np.clip(frames[: len(video)], -1, 1).mean(-1).ravel()
    assert np.corrcoef(video.mean(-1).ravel(), wanted)[0, 1] > 0.9
    assert "s a step, peak memory" in done.stdout and str(tmp_path / "out.mp4") in done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoints) -> tuple[Path, str]:
    """A folder in which a process made two videos of a long prompt, and what it said."""
    folder = tmp_path_factory.mktemp("made")
    Image.open(draw(folder / "photograph.png")).crop((0, 0, 60, 80)).save(folder / "tall.png")
    done = run(
        f"--config={CONFIGS / 'micro.py'}",
        f"--checkpoint={checkpoints['micro']}",
        f"--image={folder / 'tall.png'}",
        "--fit=letterbox",
        f"--prompt={LONG}",
        f"--output={folder / 'out.gif'}",
        "--seed=7",
        "--num_samples=2",
        "--config.sampling.steps=1",
        "--config.sampling.guidance_scale=1",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_video_says_how_it_was_made(made, checkpoints):
    folder, _ = made
    stored = [json.loads((folder / f"out-{i}.gif.json").read_text()) for i in range(2)]
    assert {name.name for name in folder.glob("out*")} == {
        f"out-{i}.{kind}" for i in range(2) for kind in ("gif", "gif.json")
    }
    for i, one in enumerate(stored):
        assert one["seed"] == 7 and one["sample_index"] == i and one["prompt"] == LONG
        assert one["config"]["sampling"]["steps"] == 1
        assert one["config"]["sampling"]["fit"] == "letterbox"
        assert one["config"]["sampling"]["seed"] == 7  # --seed wins over the config's
        assert one["versions"]["jax"] and one["devices"] and "git_revision" in one
        (source,) = one["weights"]
        digest = hashlib.sha256(checkpoints["micro"].read_bytes()).hexdigest()
        assert source == {"name": "micro.safetensors", "sha256": digest}
    first, second = (read_video(folder / f"out-{i}.gif")[0] for i in range(2))
    assert not np.array_equal(first, second)
    assert first.shape == second.shape == (3, 16, 12, 3)  # the picture's own aspect


def test_a_prompt_that_is_too_long_warns_and_is_cut(made):
    (line,) = [line for line in made[1].splitlines() if line.startswith("warning: ")]
    assert "100 tokens" in line and "last 25 were cut" in line


def test_a_folder_gets_each_frame(tmp_path, checkpoints, photograph):
    done = programs.ran(
        "sample.py",
        *quick(checkpoints),
        f"--image={photograph}",
        f"--output={tmp_path / 'frames'}/",
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "frames").glob("*.png"))) == 3


def quick(checkpoints: dict[str, Path]) -> tuple[str, ...]:
    """Flags of a short run of the smallest model."""
    return (
        f"--config={CONFIGS / 'micro.py'}",
        f"--checkpoint={checkpoints['micro']}",
        "--config.sampling.steps=1",
        "--config.sampling.guidance_scale=1",
    )


def test_a_table_of_prompts_makes_a_video_each(tmp_path, checkpoints, photograph):
    table = tmp_path / "batch.csv"
    table.write_text(
        f"id,image,prompt,seed\none,{photograph.name},a cat,\ntwo,{photograph.name},,5\n"
    )
    done = programs.ran(
        "sample.py",
        *quick(checkpoints),
        f"--prompts={table}",
        f"--output_dir={tmp_path / 'videos'}",
    )
    assert done.returncode == 0, done.stderr
    made = {
        name: json.loads((tmp_path / "videos" / f"{name}.mp4.json").read_text())
        for name in ("one", "two")
    }
    assert [made[name]["seed"] for name in ("one", "two")] == [0, 5]
    assert [made[name]["prompt"] for name in ("one", "two")] == ["a cat", ""]
    assert made["one"]["sample_index"] != made["two"]["sample_index"]  # so their noise differs
    assert read_video(tmp_path / "videos" / "two.mp4")[0].shape == (3, 16, 24, 3)


def test_a_picture_that_cannot_be_read_fails_its_row_alone(tmp_path, checkpoints, photograph):
    table = tmp_path / "batch.csv"
    table.write_text(f"id,image\none,{photograph.name}\ntwo,missing.png\n")
    flags = (
        *quick(checkpoints),
        f"--prompts={table}",
        f"--output_dir={tmp_path / 'videos'}",
    )
    done = programs.ran("sample.py", *flags)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: 1 of 2 clips failed") and "manifest.jsonl" in line
    lines = (tmp_path / "videos" / "manifest.jsonl").read_text().splitlines()
    one, two = map(json.loads, lines)
    assert one["status"] == "done" and read_video(tmp_path / "videos" / one["output"])
    assert two["status"] == "error" and "missing.png does not exist" in two["error"]
    assert "1 clips in" in done.stdout and "device busy" in done.stdout
    # Put right, the other is kept.
    table.write_text(table.read_text().replace("missing.png", photograph.name))
    done = programs.ran("sample.py", *flags)
    assert done.returncode == 0 and "1 were there already, 0 failed" in done.stdout, done.stderr


def spoil(tensors, how):
    name = "model.diffusion_model.out.2.bias"
    if how == "missing":
        del tensors[name]
    elif how == "extra":
        tensors["model.diffusion_model.surprise"] = np.zeros(3, np.float32)
    elif how == "misshapen":
        tensors[name] = np.zeros(5, np.float32)
    elif how == "nan":
        tensors[name] = np.full(4, np.nan, np.float32)
    return tensors


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "out.2.bias"),
        ("extra", "surprise"),
        ("misshapen", "out.2.bias"),
        ("nan", "out.2.bias"),
    ],
)
def test_a_wrong_checkpoint_is_named(tmp_path, photograph, how, said):
    save_file(spoil(release_files.micro_tensors(), how), tmp_path / "model.safetensors")
    refused(
        tmp_path,
        said,
        checkpoint=tmp_path / "model.safetensors",
        image=photograph,
    )


def refused(folder, said, **changed):
    """Runs with some flags wrong, and checks the one line, the status, and that nothing is left."""
    output = changed.pop("output", folder / "made" / "out.mp4")
    before = {path for path in folder.rglob("*")}
    arguments = {"config": CONFIGS / "micro.py", "checkpoint": "missing.safetensors"}
    arguments |= {"image": "missing.png", "output": output} | changed
    line = programs.refused(
        "sample.py",
        *(f"--{k.replace('__', '.')}={v}" for k, v in arguments.items() if v is not None),
    )
    assert line.startswith("error: ") and said in line
    assert {path for path in folder.rglob("*")} == before
    return line


def test_missing_truncated_and_impossible_pictures(tmp_path, photograph):
    refused(tmp_path, "missing.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(photograph.read_bytes()[:200])
    refused(tmp_path, "cut.png", image=cut)
    for name, size in (("dot.png", (1, 1)), ("huge.png", (20_000, 20_000))):
        Image.new("1", size).save(tmp_path / name)
        refused(tmp_path, name, image=tmp_path / name)
    np.save(tmp_path / "wrong.npy", np.zeros((63, 96, 3), np.float32))
    refused(tmp_path, "wrong.npy", image=tmp_path / "wrong.npy")


def test_missing_and_broken_checkpoints(tmp_path, photograph, checkpoints):
    refused(tmp_path, "missing.safetensors", image=photograph)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoints["micro"].read_bytes()[:100_000])
    refused(tmp_path, "cut.safetensors", image=photograph, checkpoint=cut)
    refused(tmp_path, "--checkpoint", image=photograph, checkpoint=None)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_does_not(tmp_path, photograph):
    checkpoint, crater = tmp_path / "model.ckpt", tmp_path / "crater"
    checkpoint.write_bytes(pickle.dumps({"state_dict": Bomb(crater)}))
    refused(tmp_path, "model.ckpt", image=photograph, checkpoint=checkpoint)
    assert not crater.exists()


def test_outputs_that_cannot_be_written_are_noticed_first(tmp_path, photograph):
    refused(tmp_path, "unknown extension .xyz", image=photograph, output=tmp_path / "out.xyz")
    refused(tmp_path, "photograph.png", image=photograph, output=photograph / "out.mp4")
    refused(tmp_path, "no --output", image=photograph, output=None)
    refused(tmp_path, "photograph.png", image=photograph, save_latents=photograph / "latents.npy")
    refused(tmp_path, "crf 99", image=photograph, crf=99)
    (tmp_path / "cat.mp4.json").write_text('{"of": "the user"}')
    said = "cat.mp4.json is in the way: a run would write its record there, and no run wrote this"
    refused(tmp_path, said, image=photograph, output=tmp_path / "cat.mp4")
    said = "--save_latents and --output are the same file"
    output = tmp_path / "out.mp4"
    refused(tmp_path, said, image=photograph, output=output, save_latents=output)


def test_flags_and_settings_that_cannot_be(tmp_path, photograph):
    refused(tmp_path, "steps is 0", image=photograph, config__sampling__steps=0)
    refused(tmp_path, "steps is 1001", image=photograph, config__sampling__steps=1001)
    refused(tmp_path, "exclude each other", image=photograph, end_image=photograph, loop=True)
    refused(
        tmp_path,
        "no field 'stepz' (did you mean 'steps'?)",
        image=photograph,
        config__sampling__stepz=5,
    )
    refused(tmp_path, "no config 'i2v_2048'", image=photograph, config="i2v_2048")
    refused(tmp_path, "surprise", image=photograph, surprise=1)
    refused(tmp_path, "float", image=photograph, config__sampling__eta="much")


def test_a_model_of_the_hub_without_a_network(tmp_path, photograph, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    name = "Doubiiu/DynamiCrafter_512"
    said = f"download model.ckpt from https://huggingface.co/{name} on another machine"
    refused(tmp_path, said, checkpoint=name, config=None, image=photograph)
    # What is cheap to check is checked before a download.
    refused(tmp_path, "missing.png", checkpoint=name, config=None)


def test_the_end_of_another_aspect(tmp_path, photograph):
    Image.open(photograph).crop((0, 0, 60, 80)).save(tmp_path / "tall.png")
    refused(
        tmp_path,
        "the fit 'letterbox' needs pictures of one aspect ratio",
        image=photograph,
        end_image=tmp_path / "tall.png",
        fit="letterbox",
    )


def test_noise_that_does_not_fit(tmp_path, photograph, checkpoints):
    changed = {"image": photograph, "checkpoint": checkpoints["micro"]}
    refused(tmp_path, "no noise file", noise="missing.npz", **changed)
    (tmp_path / "text.npz").write_text("no numbers")
    refused(tmp_path, "text.npz", noise=tmp_path / "text.npz", **changed)
    wrong = {
        "posterior_noise": np.zeros((3, 8, 12, 4)),
        "x_T": np.zeros((1, 3, 8, 11, 4)),
        "step_noise": np.zeros((5, 1, 3, 8, 12, 4)),
    }
    np.savez(tmp_path / "wrong.npz", allow_pickle=False, **wrong)
    line = refused(
        tmp_path,
        "x_T has shape (1, 3, 8, 11, 4)",
        noise=tmp_path / "wrong.npz",
        config__sampling__steps=5,
        **changed,
    )
    assert "(1, 3, 8, 12, 4)" in line


def test_tables_that_do_not_fit(tmp_path, photograph):
    common = {"image": None, "output": None}
    table = tmp_path / "batch.csv"
    for text, said in (
        ("id,prompt\na,b\n", "line 2: has no 'image'"),
        ("id,image\n../a,b.png\n", "id '../a'"),
        ("id,image\na,photograph.png\na,photograph.png\n", "occurs twice"),
        ("id,image,seed\na,photograph.png,x\n", "seed 'x'"),
        ("id,image,steps\na,photograph.png,0\n", "line 2: sampling.steps is 0"),
        ("id,image,colour\na,photograph.png,red\n", "colour"),
        ("id,image\n", "holds no rows"),
    ):
        table.write_text(text)
        refused(tmp_path, said, prompts=table, output_dir=tmp_path / "videos", **common)
    refused(tmp_path, "--output_dir", prompts=table, **common)
    refused(tmp_path, "--batch_size goes with --prompts", image=photograph, batch_size=2)
