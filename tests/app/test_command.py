import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import release_files
from ml_collections import ConfigDict

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.catalogue import load_model
from dynamicrafter_jax.app.command import sample_command
from dynamicrafter_jax.app.request import Request
from dynamicrafter_jax.app.studio import make_frames
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.sampler import shown_frames
from dynamicrafter_jax.sampling.settings import SamplingSettings

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "tests" / "configs" / "micro.py"


def request(config: ConfigDict, **changes) -> Request:
    own = controls.check_settings(controls.defaults(SamplingSettings.from_config(config.sampling)))
    settings = own | changes.pop("settings", {})
    fields = {
        "model": "demo",
        "mode": controls.IMAGE_TO_VIDEO,
        "image": Path("/served/0a1b/photo.jpg"),
        "end_image": None,
        "prompt": "",
        "num_samples": 1,
    }
    return Request(**(fields | changes), settings=settings)


def words(command: str) -> list[str]:
    python, script, *flags = shlex.split(command)
    assert (python, script) == ("python", "sample.py") and flags[-1] == "--output=out.mp4"
    return flags[:-1]


def test_a_models_own_settings_need_no_flags():
    config = load_config("demo")
    assert words(sample_command(request(config), config)) == [
        "--checkpoint=demo",
        "--image=photo.jpg",
        "--seed=0",
    ]


def test_every_change_is_a_flag():
    config = load_config("demo")
    changes = {"steps": 7, "eta": 0.5, "negative_prompt": "blurry", "image_guidance_scale": 2.0}
    asked = request(
        config,
        mode=controls.INTERPOLATION,
        end_image=Path("/served/2c/end.png"),
        num_samples=3,
        settings={**changes, "seed": 9, "fit": "letterbox"},
    )
    assert set(words(sample_command(asked, config))) == {
        "--steps=7",
        "--eta=0.5",
        "--negative_prompt=blurry",
        "--image_guidance_scale=2.0",
        "--checkpoint=demo",
        "--image=photo.jpg",
        "--end_image=end.png",
        "--seed=9",
        "--fit=letterbox",
        "--num_samples=3",
    }


@pytest.mark.parametrize("prompt", ['it\'s "so" $HOME `id`; rm -rf *', "two\nlines", "日本 \\ !"])
def test_a_shell_takes_any_words_as_they_are(prompt):
    config = load_config("demo")
    command = sample_command(request(config, prompt=prompt), config)
    shell = command.replace("python sample.py", "printf '%s\\0'", 1)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True)
    assert f"--prompt={prompt}" in done.stdout.decode().split("\0")


def test_a_model_with_settings_of_its_own_keeps_them():
    own = load_config("i2v_512")
    own.sampling.steps = 30
    own.precision.dtype = "bfloat16"
    asked = request(own, model="model_512", settings={"eta": 0.0})
    assert words(sample_command(asked, own)) == [
        "--checkpoint=model_512",
        "--image=photo.jpg",
        "--seed=0",
        "--eta=0.0",
    ]


def test_a_file_is_named_with_its_config_and_what_the_page_changed_of_it():
    config = load_config("i2v_1024")
    asked = request(config, model="model.ckpt,config=i2v_1024")
    flags = words(sample_command(asked, config, ("precision.dtype=bfloat16",)))
    assert flags[:3] == [
        "--config=i2v_1024",
        "--config.precision.dtype=bfloat16",
        "--checkpoint=model.ckpt",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [controls.IMAGE_TO_VIDEO, controls.INTERPOLATION])
def test_the_command_makes_the_same_frames(tmp_path, mode):
    release_files.write(tmp_path / "micro.safetensors", release_files.micro_tensors())
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in ("first.png", "the last.png"):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
    model = f"{tmp_path / 'micro.safetensors'},config={MICRO}"
    animate = load_model(model)
    asked = request(
        animate.config,
        model=model,
        mode=mode,
        image=tmp_path / "first.png",
        end_image=tmp_path / "the last.png" if mode == controls.INTERPOLATION else None,
        prompt="a cat's tail",
        num_samples=2,
        settings={"steps": 3, "seed": 11, "guidance_scale": 4.0, "fit": "letterbox", "fps": 15},
    )
    frames = make_frames(animate, asked)
    command = sample_command(asked, animate.config)
    command = re.sub("^python sample.py", f"{sys.executable} {ROOT / 'sample.py'}", command)
    subprocess.run(
        ["bash", "-c", f"{command} --save_video=frames.npy"], cwd=tmp_path, check=True, timeout=500
    )
    theirs = shown_frames(np.load(tmp_path / "frames.npy"), loop=False)
    assert frames.dtype == theirs.dtype == np.uint8 and np.ptp(frames) > 0
    np.testing.assert_array_equal(frames, theirs)
    assert not np.array_equal(frames[0], frames[1])


def test_frames_are_those_of_settings_in_the_config(tmp_path):
    """As `sample.py` has them, beside those of a call, as the page has them."""
    import tiny
    from PIL import Image

    picture = tmp_path / "picture.png"
    draw = np.random.default_rng(1)
    Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(picture)
    model = tiny.micro()
    changes = {"steps": 2, "seed": 3, "guidance_scale": 1.0, "fps": 12}
    asked = request(model.config, image=picture, prompt="a cat", settings=changes)
    config = model.config.copy_and_resolve_references()
    config.sampling.update(changes)
    sampler = ImageToVideo.__new__(ImageToVideo)
    sampler.__dict__.update(model.__dict__, config=config)
    np.testing.assert_array_equal(
        make_frames(model, asked)[0], sampler.sample(str(picture), "a cat").frames()[0]
    )
