import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from release_files import different, files_in, manifest, micro, micro_tensors, write

from dynamicrafter_jax.convert import convert
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.release import unused_tensors
from dynamicrafter_jax.weights.write_release import export

ROOT = Path(__file__).parents[2]
CONFIGS = {"256": "i2v_256", "512": "i2v_512", "1024": "i2v_1024"}


@pytest.fixture(scope="module")
def converted_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(write(folder / "micro.safetensors", micro_tensors()), folder / "micro", micro())
    return folder / "micro"


def test_an_export_is_again_the_release_file(tmp_path, converted_model):
    summary = export(converted_model, tmp_path / "again.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert different(ours, micro_tensors()) == []
    unused = unused_tensors(text_layers=2)
    assert {name for name in ours if name not in micro_tensors()} == {
        name for name, fate in unused.items() if fate == "rebuilt"
    }
    sizes = [values.size for name, values in micro_tensors().items() if name not in unused]
    assert (summary.tensors, summary.parameters) == (len(sizes), sum(sizes))
    assert summary.carried == 23


# Prints the layout of an export of each full model. It runs apart from the tests, whose checks of
# every type make the tracing of so many layers slow.
LAYOUTS = """
import json, sys
import numpy as np
from dynamicrafter_jax.config import config_to_json, load_config
from dynamicrafter_jax.weights import load, release, write_release

layouts = {}
for name, shapes in json.load(sys.stdin).items():
    config = load_config(name)
    config.unet.default_fs = 0  # shapes no parameter: the networks of 512 and 1024 are then one
    fates = release.unused_tensors(config.text_encoder.layers)
    carried = {
        name: (np.dtype(np.float32), tuple(shapes[name]))
        for name, fate in fates.items()
        if fate == "carried"
    }
    boxed = load.abstract_params(config)
    layout = write_release.release_layout(config, boxed, carried, np.dtype(np.float32))
    layouts[name] = {name: [shape, dtype.name] for name, (dtype, shape) in layout.items()}
print(json.dumps(layouts))
"""


def test_an_export_of_a_full_model_has_the_names_and_shapes_of_its_release():
    expected = {name: manifest(kind) for kind, name in CONFIGS.items()}
    done = subprocess.run(
        [sys.executable, "-c", LAYOUTS],
        input=json.dumps(expected),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    layouts = json.loads(done.stdout)
    assert set(layouts) == set(expected)
    for name, shapes in expected.items():
        assert layouts[name] == {key: [list(s), "float32"] for key, s in shapes.items()}


def test_half_precision(tmp_path):
    """Parameters in bfloat16; what is carried keeps its type until an export chooses one."""
    halves = {name: values.astype(np.float16) for name, values in micro_tensors().items()}
    path = write(tmp_path / "half.safetensors", halves)
    config = micro()
    config.precision.param_dtype = "bfloat16"
    convert(path, tmp_path / "model", config)
    assert converted.read_description(tmp_path / "model")["dtype"] == "bfloat16"
    unused = unused_tensors(text_layers=2)

    export(tmp_path / "model", tmp_path / "kept.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "kept.safetensors")
    assert ours["alphas_cumprod"].dtype == np.float32
    bfloat16 = jnp.dtype(jnp.bfloat16)
    expected = {n: v if n in unused else v.astype(bfloat16) for n, v in halves.items()}
    assert different(ours, expected) == []

    export(tmp_path / "model", tmp_path / "wide.safetensors", dtype="float32")
    ours = safetensors.numpy.load_file(tmp_path / "wide.safetensors")
    assert different(ours, {n: v.astype(np.float32) for n, v in expected.items()}) == []


def test_float16_is_refused_where_it_overflows(tmp_path, converted_model):
    export(converted_model, tmp_path / "half.safetensors", dtype="float16")
    ours = safetensors.numpy.load_file(tmp_path / "half.safetensors")
    expected = {name: values.astype(np.float16) for name, values in micro_tensors().items()}
    assert different(ours, expected) == []

    theirs = micro_tensors()
    theirs["model.diffusion_model.out.2.bias"] = np.full(4, 1e5, np.float32)
    large = write(tmp_path / "large.safetensors", theirs)
    convert(large, tmp_path / "model", micro())
    with pytest.raises(UserError, match=r"out\.2\.bias has values too large for float16"):
        export(tmp_path / "model", tmp_path / "export.safetensors", dtype="float16")
    assert not (tmp_path / "export.safetensors").exists()


def test_an_export_says_what_it_lacks(tmp_path):
    carried = tuple(
        name for name, fate in unused_tensors(text_layers=2).items() if fate == "carried"
    )
    path = write(tmp_path / "used.safetensors", micro_tensors(without=carried))
    convert(path, tmp_path / "model", micro())
    assert not (tmp_path / "model" / "carried.safetensors").exists()
    with pytest.warns(UserWarning, match="carries no") as caught:
        export(tmp_path / "model", tmp_path / "again.safetensors")
    assert all(name in str(caught[0].message) for name in carried)
    ours = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert different(ours, micro_tensors(without=carried)) == []
    assert not set(carried) & set(ours)


def test_an_export_that_fails_halfway_leaves_nothing_behind(tmp_path, converted_model, monkeypatch):
    def broken(directory, abstract):
        if directory.name == "vae":
            raise UserError("the disk is broken")
        return open_tree(directory, abstract)

    open_tree = converted.open_tree
    monkeypatch.setattr(converted, "open_tree", broken)
    with pytest.raises(UserError, match="the disk is broken"):
        export(converted_model, tmp_path / "again.safetensors")
    assert files_in(tmp_path) == []
