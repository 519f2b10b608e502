import functools
import json
import operator
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import converted, stored


def some_tree():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape, np.float32))

    return {
        "in": {"kernel": draw(8, 3), "bias": draw(3)},
        "alpha": draw(),
        "block_10": {"norm": {"scale": draw(5).astype(jnp.bfloat16)}},
        "block_2": {"norm": {"scale": draw(16, 4)}},
    }


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def assert_same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and np.array_equal(a, b)


@pytest.fixture
def saved(tmp_path):
    converted.save_tree(tmp_path / "tree", some_tree())
    return tmp_path / "tree"


def refusal(path, tree, **options):
    with pytest.raises(UserError) as caught:
        converted.restore_tree(path, abstract(tree), **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_tree_comes_back_bit_for_bit(saved):
    assert_same(converted.restore_tree(saved, abstract(some_tree())), some_tree())


def test_paths_may_be_relative(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    converted.save_tree("again", some_tree())
    for place in (saved.name, "again"):
        assert_same(converted.restore_tree(place, abstract(some_tree())), some_tree())


def test_a_tree_comes_back_in_parts_too(saved, monkeypatch):
    monkeypatch.setattr(stored, "_PART_BYTES", 100)
    assert_same(converted.restore_tree(saved, abstract(some_tree())), some_tree())


def test_leaves_come_one_by_one_and_children_are_read_once(saved, monkeypatch):
    reads, read_parts = [], stored.read
    monkeypatch.setattr(
        stored, "read", lambda path, tree: reads.append([*tree]) or read_parts(path, tree)
    )
    leaf = converted.open_tree(saved, abstract(some_tree()))
    for path in (("in", "bias"), ("in", "kernel"), ("block_10", "norm", "scale"), ("alpha",)):
        expected = functools.reduce(operator.getitem, path, some_tree())
        assert_same(leaf(path), expected)
    assert reads == [["in"], ["block_10"], ["alpha"]]


def test_types_are_changed_on_the_way(saved):
    ours = converted.restore_tree(saved, abstract(some_tree()), dtype=jnp.bfloat16)
    assert_same(ours, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), some_tree()))


def test_leaves_go_where_they_are_sent(saved):
    mesh = jax.make_mesh((8,), ("x",))
    whole = jax.NamedSharding(mesh, jax.P())
    shardings = jax.tree.map(lambda _: whole, some_tree())
    shardings["in"]["kernel"] = shardings["block_2"]["norm"]["scale"] = jax.NamedSharding(
        mesh, jax.P("x")
    )
    ours = converted.restore_tree(saved, abstract(some_tree()), shardings=shardings)
    assert_same(ours, some_tree())
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, ours, shardings))
    assert ours["in"]["kernel"].addressable_shards[0].data.shape == (1, 3)


def test_the_libraries_announce_no_change(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("error", FutureWarning)
        converted.save_tree(tmp_path / "tree", some_tree())
        converted.restore_tree(tmp_path / "tree", abstract(some_tree()))


def test_other_leaves_are_listed(saved):
    wanted = some_tree()
    del wanted["alpha"]
    wanted["in"]["weight"] = wanted["in"].pop("kernel")
    wanted["block_2"]["norm"]["scale"] = jnp.zeros((4, 16))
    message = refusal(saved, wanted)
    assert "1 missing: in/weight;" in message
    assert "2 unexpected: alpha (), in/kernel (8, 3);" in message
    assert "1 misshapen: block_2/norm/scale (16, 4) instead of (4, 16)" in message


def test_no_checkpoint(tmp_path):
    assert "not a complete checkpoint" in refusal(tmp_path / "absent", some_tree())
    (tmp_path / "empty").mkdir()
    assert "not a complete checkpoint" in refusal(tmp_path / "empty", some_tree())


def test_a_damaged_checkpoint(saved):
    for file in saved.rglob("*"):
        if file.is_file() and file.name not in ("_METADATA", "_sharding", "manifest.ocdbt"):
            file.write_bytes(file.read_bytes()[:-1])
    refusal(saved, some_tree())


@pytest.fixture
def converted_model(tmp_path):
    """A converted model of two small sections, without what is carried."""
    directory = tmp_path / "model"
    for section in ("unet", "projector"):
        converted.save_tree(converted.section_path(directory, section), some_tree())
    sources = [{"name": "model.ckpt", "sha256": "0" * 64}]
    converted.write_description(directory, tiny.config("v"), sources)
    return directory


def test_sections_are_loaded(converted_model):
    sections = {"projector": abstract(some_tree())}
    assert_same(converted.load_converted(converted_model, sections), {"projector": some_tree()})


def test_the_config_comes_back(converted_model):
    config = converted.read_config(converted_model)
    assert config == tiny.config("v")
    assert config.unet.channel_mult == (1, 2)
    assert config.sampling.image_guidance_scale is None


def test_the_description_says_where_it_comes_from(converted_model):
    description = converted.read_description(converted_model)
    assert description["format_version"] == 1 and description["dtype"] == "float32"
    assert description["sources"] == [{"name": "model.ckpt", "sha256": "0" * 64}]
    files = {
        str(f.relative_to(converted_model)): f for f in converted_model.rglob("*") if f.is_file()
    }
    del files["config.json"]
    assert description["files"] == {name: file.stat().st_size for name, file in files.items()}


def test_nothing_may_be_carried(converted_model):
    with converted.open_carried(converted_model) as carried:
        assert carried == {}


def refused_directory(path):
    with pytest.raises(UserError) as caught:
        converted.read_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_no_converted_model(tmp_path, converted_model):
    assert "is not a directory" in refused_directory(tmp_path / "absent")
    (converted_model / "config.json").unlink()
    assert "it has no config.json" in refused_directory(converted_model)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '"config"', '{"format_version": 1}', '{"format_version": "1"}']
)
def test_a_damaged_description(converted_model, text):
    (converted_model / "config.json").write_text(text)
    assert "is damaged" in refused_directory(converted_model)


def test_a_newer_format(converted_model):
    description = json.loads((converted_model / "config.json").read_text())
    (converted_model / "config.json").write_text(json.dumps({**description, "format_version": 2}))
    assert "upgrade dynamicrafter-jax" in refused_directory(converted_model)


def test_a_half_copied_model(converted_model):
    files = (file for file in (converted_model / "params").rglob("*") if file.is_file())
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert f"{largest} is truncated" in refused_directory(converted_model)
    largest.unlink()
    assert f"{largest} is missing" in refused_directory(converted_model)
