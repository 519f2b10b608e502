"""DreamSim against the `dreamsim` package, by the same weights in the same files."""

import json

import dreamsim_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.dreamsim import DreamSim, distance, embed, model_of
from dynamicrafter_jax.metrics.dreamsim_weights import (
    convert_dreamsim,
    describe_dreamsim,
    load_dreamsim,
)
from dynamicrafter_jax.metrics.resizing import resize

KINDS = list(dreamsim_files.KINDS)

# What is asked for is 1e-4.
TARGET = 2e-5


def model(kind="ensemble", size="small"):
    sizes = dreamsim_files.SIZES[size]
    return DreamSim(dreamsim_files.KINDS[kind], **sizes._asdict())


def write(folder, kind="ensemble", size="small"):
    pytest.importorskip("torch", reason="it makes the files")
    return dreamsim_files.write(folder, kind, dreamsim_files.SIZES[size])


def load(folder, kind="ensemble"):
    return load_dreamsim(folder, kind, model())


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def branches_of(features, kind, size):
    """Each network's features, which need not have one scale."""
    sizes = dreamsim_files.SIZES[size]
    widths = [sizes.width if b == "dino" else sizes.embedding for b in dreamsim_files.KINDS[kind]]
    return np.split(np.asarray(features), np.cumsum(widths)[:-1], axis=-1)


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_and_distances(tmp_path, relative_error, kind, size):
    golden, network = dreamsim_files.golden(), model(kind, size)
    params = load_dreamsim(write(tmp_path, kind, size), kind, network)
    pictures = [dreamsim_files.picture(*which)[None] for which in dreamsim_files.pictures(size)]
    images = jnp.concatenate([resize(jnp.asarray(picture), 224, 224) for picture in pictures])
    pairs = zip(
        branches_of(jax.jit(network.apply)({"params": params}, images), kind, size),
        branches_of(golden[f"features_{kind}_{size}"], kind, size),
        strict=True,
    )
    for ours, theirs in pairs:
        assert relative_error(ours, theirs) < TARGET
    vectors = jax.jit(embed, static_argnames="model")(params, images, model=network)
    assert relative_error(vectors, golden[f"vectors_{kind}_{size}"]) < TARGET


@pytest.mark.parametrize("kind", KINDS)
def test_distances(kind):
    golden = dreamsim_files.golden()
    vectors = jnp.asarray(golden[f"vectors_{kind}_small"])
    distances = distance(vectors, jnp.roll(vectors, 1, 0))
    assert np.abs(distances - golden[f"distances_{kind}"]).max() < 1e-6
    assert np.asarray(distances).min() > 1e-3  # or there would be little to compare


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_file_is_the_same(tmp_path, kind):
    folder, file = write(tmp_path, kind), tmp_path / "dreamsim.safetensors"
    convert_dreamsim(folder, file, kind, model())
    assert same(load(file, kind), load(folder, kind))
    hashed = describe_dreamsim(file, kind)["weights_sha256"]
    assert describe_dreamsim(file, kind)["files"] == {"dreamsim.safetensors": hashed}


def test_all_files_are_named_and_hashed(tmp_path):
    folder = write(tmp_path)
    before = describe_dreamsim(folder)
    assert list(before["files"]) == [
        "checkpoints/dino_vitbase16_pretrain.pth",
        "clip_vitb16_pretrain.pth.tar",
        "open_clip_vitb16_pretrain.pth.tar",
        "ensemble_lora/adapter_config.json",
        "ensemble_lora/adapter_model.safetensors",
    ]
    (folder / "ensemble_lora/adapter_config.json").write_text("{}")
    assert describe_dreamsim(folder)["weights_sha256"] != before["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("checkpoints/dino_vitbase16_pretrain.pth", r"dl\.fbaipublicfiles\.com/dino"),
        ("clip_vitb16_pretrain.pth.tar", r"v0\.2\.0-checkpoints/dreamsim_ensemble_checkpoint\.zip"),
        ("ensemble_lora/adapter_model.safetensors", "dreamsim_ensemble_checkpoint"),
    ],
)
def test_a_missing_file_says_where_it_is_from(tmp_path, name, source):
    folder = write(tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist: .*{source}"):
        load(folder)


def test_a_missing_folder_says_what_is_needed(tmp_path):
    sources = r"dreamsim_dino_vitb16_checkpoint\.zip.*dino_vitbase16_pretrain\.pth"
    with pytest.raises(UserError, match=rf"nowhere does not exist: .*{sources}"):
        load_dreamsim(tmp_path / "nowhere", "dino_vitb16")


def test_dino_may_lie_beside_the_others(tmp_path):
    folder = write(tmp_path, "dino_vitb16")
    before = load(folder, "dino_vitb16")
    file = folder / "checkpoints/dino_vitbase16_pretrain.pth"
    file.rename(folder / file.name)
    assert same(load(folder, "dino_vitb16"), before)


def change_adapter(folder, change):
    file = folder / "ensemble_lora/adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def test_incomplete_adapters_are_refused(tmp_path):
    folder = write(tmp_path)
    name = "base_model.model.extractor_list.2.model.blocks.1.attn.qkv.lora_B.weight"
    change_adapter(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=rf"1 missing: {name}"):
        load(folder)
    change_adapter(folder, lambda t: t.update({name: np.full((144, 16), np.nan, np.float32)}))
    with pytest.raises(UserError, match=r"open_clip\.blocks\.1\.attn\.qkv\.weight holds NaN"):
        load(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": 8}, r"lora_A\.weight \(16, 48\) instead of \(8, 48\)"),
        ({"use_rslora": True}, "merging is not supported for its settings use_rslora"),
        ({"r": 0}, "not the config of a LoRA adapter"),
        ({"lora_alpha": None}, "not the config of a LoRA adapter"),
    ],
)
def test_adapters_of_another_kind_are_refused(tmp_path, changed, message):
    folder = write(tmp_path)
    config = {**dreamsim_files.ADAPTER_CONFIG, **changed}
    (folder / "ensemble_lora/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_other_networks_are_refused(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(UserError, match="no kind dinov2: give one of ensemble, dino_vitb16"):
        load_dreamsim(folder, "dinov2")
    with pytest.raises(UserError, match=r"pretrain\.pth does not fit DreamSim: .* misshapen"):
        load_dreamsim(folder)
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        convert_dreamsim(folder, tmp_path / "dreamsim.pt")
    with pytest.raises(UserError, match="no kind of DreamSim has the networks clip, dino"):
        model_of({"dino": {}, "clip": {}})


@pytest.mark.parametrize("kind", KINDS)
def test_trained_weights_say_which_networks_there_are(kind):
    found = model_of(dict.fromkeys(dreamsim_files.KINDS[kind]))
    assert found == model(kind, "full")
