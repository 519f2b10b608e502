"""What a file or a folder is, said of one that is not what was asked for."""

import json

import pytest
import release_files
from etils import epath

from dynamicrafter_jax import convert
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import converted, load
from dynamicrafter_jax.weights.names import find_model
from dynamicrafter_jax.weights.recognition import models_like
from dynamicrafter_jax.weights.tensors import open_tensors

SAME = ["i2v_512", "i2v_1024", "interp_512"]


@pytest.mark.parametrize(
    "kind, names", [("256", ["i2v_256"]), ("512", SAME), ("1024", SAME), ("tiny_v", [])]
)
def test_releases_are_told_by_their_names_and_shapes(kind, names):
    shapes = release_files.manifest(kind)
    assert models_like(shapes) == names
    towers = ("first_stage_model.", "cond_stage_model.", "embedder.")
    without = {name: shape for name, shape in shapes.items() if not name.startswith(towers)}
    assert models_like(without) == names
    assert models_like({}) == []


def test_a_file_of_another_model_is_said_to_be_one():
    demo = find_model("demo")
    with open_tensors(demo) as tensors:
        assert models_like({name: t.shape for name, t in tensors.items()}) == ["demo"]
    with pytest.raises(UserError) as caught:
        load.load_release(demo, release_files.micro())
    said = str(caught.value)
    assert said.startswith(f"{demo} is not a micro model: it looks like demo: ")
    counts = [part.split(":")[0] for part in said.split("demo: ")[1].split("; ")]
    assert [count.split()[1] for count in counts] == ["unexpected", "misshapen"]
    assert said.endswith("DYNAMICRAFTER_DEBUG=1 lists all)") and len(said) < 700
    assert len(caught.value.details) > 10_000 and "image_proj_model.latents" in caught.value.details


def test_a_directory_of_another_model_is_said_to_be_one(tmp_path):
    config = release_files.micro()
    converted.write_description(tmp_path, config, [])
    with pytest.raises(UserError, match=r"is not an i2v_512 model: it was made with the config mi"):
        load.load_pretrained(tmp_path, config=load_config("i2v_512"))


@pytest.mark.parametrize(
    "files, said",
    [
        ({"model_index.json": "{}"}, "is a diffusers folder"),
        ({"config.json": '{"_diffusers_version": "0.3"}'}, "give a file with the release's na"),
        ({"config.json": '{"model_type": "clip"}'}, "is a transformers folder"),
        ({"checkpoints/5/x": ""}, "is a training run: convert it to a model with python -m dyn"),
        ({"config.json": '{"train": {}}'}, "is a training run that has no checkpoint yet"),
        ({"model.ckpt": "", "README.md": ""}, "give the path of a file in it, such as model.ckpt"),
        ({"README.md": ""}, "is not a converted model: it has no config.json"),
        ({"config.json": "{"}, "config.json is damaged"),
    ],
)
def test_other_folders_are_told_for_what_they_are(tmp_path, files, said):
    folder = tmp_path / "folder"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load.load_pretrained(folder)
    assert said in str(caught.value) and str(folder) in str(caught.value)
    if "checkpoints/5/x" in files:
        return  # which is what `convert` is for
    given = dict.fromkeys(("config", "dtype", "towers", "step", "averaged", "export_dtype"))
    flags = {"input": str(folder), "output": str(tmp_path / "out"), "export": False}
    with pytest.raises(UserError) as caught:
        convert.run({**given, **flags, "overwrite": False})
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_a_converted_directory_is_converted_already(tmp_path):
    converted.write_description(tmp_path, release_files.micro(), [])
    assert "train" in json.loads((tmp_path / "config.json").read_text())["config"]
    given = dict.fromkeys(("config", "dtype", "towers", "step", "averaged", "export_dtype"))
    flags = {"input": str(tmp_path), "output": str(tmp_path / "o"), "export": False}
    with pytest.raises(UserError, match="is a converted model: to make it a file, give --export"):
        convert.run({**given, **flags, "overwrite": False})


@pytest.mark.parametrize(
    "name, said",
    [
        ("i2v_512", r"from_pretrained\('Doubiiu/DynamiCrafter_512'\)"),
        ("interp_512", "--checkpoint=Doubiiu/DynamiCrafter_512_Interp"),
        ("finetune_512", "train.py --config=finetune_512 --workdir=DIRECTORY"),
    ],
)
def test_the_name_of_a_config_is_no_model(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name} is the name of a config.*{said}"):
        load.load_pretrained(name)
    (tmp_path / name).mkdir()
    assert find_model(name) == epath.Path(name)
