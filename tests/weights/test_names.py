"""Models by name: what a name stands for, and that every entry point knows it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import release_files
from etils import epath

from dynamicrafter_jax import convert
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.weights import load, names, warm_start
from dynamicrafter_jax.weights.hub import Repository
from dynamicrafter_jax.weights.write_release import export


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    file = release_files.write(folder / "micro.safetensors", release_files.micro_tensors())
    convert.convert(file, folder / "micro", release_files.micro())
    return folder / "micro"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, converted: Path) -> list[str]:
    """A hub where every repository is the smallest model; returns what was downloaded."""
    downloads: list[str] = []

    def download(self: Repository) -> Path:
        downloads.append(self.id)
        return converted.parent / "micro.safetensors" if self.id.endswith("file") else converted

    monkeypatch.setattr(Repository, "download", download)
    return downloads


def test_a_name_is_looked_up_in_order(tmp_path, monkeypatch, hub, converted):
    monkeypatch.chdir(tmp_path)
    for folder in ("demo", "lab/here"):
        (tmp_path / folder).mkdir(parents=True)
    for source in ("./demo", epath.Path("demo"), Path("demo"), "lab/here", "nowhere", "gs://a/b"):
        found = names.find_model(source)
        assert found == epath.Path(source), source
        assert names.known_config(source) is None
    assert hub == []
    assert names.find_model("lab/there") == epath.Path(converted)
    assert names.find_model("lab/there@v1") == epath.Path(converted)
    assert names.find_model(epath.Path("lab/there")) == epath.Path("lab/there")
    assert hub == ["lab/there", "lab/there"]


def test_known_names_say_their_config(hub):
    for source, name in (
        ("demo", "demo"),
        ("Doubiiu/DynamiCrafter", "i2v_256"),
        ("Doubiiu/DynamiCrafter_512", "i2v_512"),
        ("Doubiiu/DynamiCrafter_1024@main", "i2v_1024"),
        ("Doubiiu/DynamiCrafter_512_Interp", "interp_512"),
    ):
        assert names.known_config(source) == name
        assert names.config_for(source, None).name == name
    given = load_config("i2v_256")
    assert names.config_for("Doubiiu/DynamiCrafter_512", given) is given
    assert hub == []  # a config is known before anything is downloaded
    assert names.config_for("lab/converted", None).name == "micro"
    with pytest.raises(UserError, match="no --config: a file does not say"):
        names.config_for("lab/file", None)


def test_models_of_the_hub_are_read_like_those_at_a_path(hub, converted):
    config, params = load.load_pretrained("lab/converted")
    theirs = load.load_pretrained(converted)[1]
    assert config.name == "micro"
    assert jax.tree.all(jax.tree.map(np.array_equal, params, theirs))
    with pytest.raises(UserError, match="lab/file needs a config, such as config='i2v_1024'"):
        load.load_pretrained("lab/file")
    params = load.load_pretrained("lab/file", config=release_files.micro())[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, theirs))


def test_a_known_release_is_read_with_its_config(monkeypatch, converted):
    """The smallest model stands in its place."""
    file = converted.parent / "micro.safetensors"
    configs = {"interp_512": release_files.micro()}
    monkeypatch.setattr(Repository, "download", lambda self: file)
    monkeypatch.setattr(load, "load_config", lambda name: configs[name])
    config, params = load.load_pretrained("Doubiiu/DynamiCrafter_512_Interp")
    assert config is configs["interp_512"]
    theirs = load.load_pretrained(converted)[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, theirs))


def test_training_starts_from_names(hub, converted):
    config = release_files.micro()
    config.init.checkpoint = "lab/converted"
    key = jax.random.key(0)
    with warm_start.open_start(config, config.init, key) as start:
        assert {str(source.path) for source in start.sources.values()} == {str(converted)}
        assert not start.fresh


def test_releases_are_converted_by_name(tmp_path, hub, capsys):
    given = dict.fromkeys(["config", "dtype", "towers", "step", "averaged", "export_dtype"]) | {
        "input": "lab/file",
        "output": str(tmp_path / "out"),
        "overwrite": False,
        "export": False,
    }
    with pytest.raises(UserError, match="no --config"):
        convert.run(given)
    convert.run(given | {"config": release_files.micro()})
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [source["name"] for source in stored["sources"]] == ["micro.safetensors"]
    assert f"{tmp_path / 'out'}: " in capsys.readouterr().out


def test_a_demo_in_half_precision_is_read_in_single(tmp_path, monkeypatch, converted):
    """What ships is an export in float16; here the smallest model stands in its place."""
    file = tmp_path / "demo.safetensors"
    export(converted, file, dtype="float16")
    monkeypatch.setattr(names, "_demo_file", lambda: epath.Path(file))
    monkeypatch.setattr(load, "load_config", lambda name: {"demo": release_files.micro()}[name])
    _, params = load.load_pretrained("demo")
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(np.float16).astype(np.float32),
        load.load_pretrained(converted)[1],
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, rounded))
    assert (
        file.stat().st_size < 0.52 * sum(4 * leaf.size for leaf in jax.tree.leaves(rounded)) + 1e5
    )


def test_a_demo_that_is_not_there_is_explained(monkeypatch):
    monkeypatch.setattr(names, "_DEMO_FILE", "absent.safetensors")
    with pytest.raises(UserError, match=r"no demo model.*absent.safetensors.*docs/training.md"):
        ImageToVideo.from_pretrained("demo")
