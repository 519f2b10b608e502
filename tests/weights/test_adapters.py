"""Parameters that no release has: small matrices beside the kernels of the U-Net's transformers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from release_files import FROZEN, different, micro, micro_tensors, write

from dynamicrafter_jax.models import transformers
from dynamicrafter_jax.models.layers import Linear, Parameter, init_params, zeros
from dynamicrafter_jax.weights import converted, load
from dynamicrafter_jax.weights.release import adapters, release_tensors, unused_tensors
from dynamicrafter_jax.weights.warm_start import open_start
from dynamicrafter_jax.weights.write_release import export


class Adapted(Linear):
    """A linear map and a low-rank one beside it, which starts at zero."""

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        if self.num_inputs > 1:
            return y
        init = nn.initializers.normal(1.0)
        down = self.weight("down", init, (x.shape[-1], 2), (self.names[0], None), adapter=True)
        shape, names = (2, *self.features), (None, *self.names[1:])
        up = self.weight("up", zeros, shape, names, adapter=True)
        return y + jnp.tensordot(x @ down, up, 1)


@pytest.fixture(scope="module")
def boxed():
    """The parameters of the smallest model with adapters, which every reader now expects."""
    micro_tensors()  # those of the release are known before there are others
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "Linear", Adapted)
        load.abstract_models.cache_clear()
        yield load.abstract_params(micro())
    load.abstract_models.cache_clear()


@pytest.fixture
def release_file(tmp_path, boxed):
    return write(tmp_path / "model.safetensors", micro_tensors())


def flat(params) -> Any:
    """The parameters by path."""
    return traverse_util.flatten_dict(params, sep="/")


def drawn(boxed, seed):
    """The adapters that are drawn with everything else, by path."""
    params = flat(init_params(boxed, jax.random.key(seed)))
    return {path: params[path] for path in adapters(boxed)}


def assert_read(params, adapted):
    """The parameters by path are those of the release file, and `adapted` besides."""
    of_release = release_tensors(load.abstract_params(micro()))
    wanted = {"/".join(t.path): t.from_release(micro_tensors()[n]) for n, t in of_release.items()}
    assert set(params) == set(wanted) | set(adapted)
    for path, values in {**wanted, **adapted}.items():
        assert np.array_equal(params[path], values), path


def test_names_and_layouts_of_a_release_are_what_they_are_without(boxed):
    found = adapters(boxed)
    assert "unet/middle/spatial/attn1/query/down" in found and len(found) > 40
    assert {path.rsplit("/", 1)[1] for path in found} == {"down", "up"}
    # The shapes in there are those of the names of a model without adapters.
    shapes = {name: tensor.shape for name, tensor in release_tensors(boxed).items()}
    carried = set(micro_tensors()) - set(shapes)
    assert len(carried) == 23
    assert shapes == {n: v.shape for n, v in micro_tensors().items() if n not in carried}


def test_an_adapter_counts_as_no_part_of_a_block():
    def box(adapter):
        value = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)
        names = (None, None, "channels_in", "channels_out")
        return {"kernel": Parameter(value, names=names, adapter=adapter)}

    block = {"adapter": box(True), "res": {"skip": box(False)}, "upsample": box(False)}
    names = release_tensors({"unet": {"output_2": block}})
    prefix = "model.diffusion_model.output_blocks.2"  # in which the upsampling follows as its 1
    assert set(names) == {f"{prefix}.0.skip_connection.weight", f"{prefix}.1.conv.weight"}


def test_a_release_file_is_read_and_adapters_are_drawn(boxed, release_file):
    adapted = drawn(boxed, 0)
    assert any(values.any() for values in adapted.values())
    assert_read(flat(load.load_release(release_file, micro())), adapted)


def test_towers_lack_no_adapters(tmp_path, boxed, release_file):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    params = load.load_release(path, micro(), towers=release_file)
    assert_read(flat(params), drawn(boxed, 0))


@pytest.mark.parametrize("field", ["checkpoint", "videocrafter"])
def test_training_draws_adapters_with_its_own_key(boxed, release_file, tmp_path, field):
    theirs = dict(micro_tensors())
    if field == "videocrafter":  # whose U-Net takes the noisy latent alone
        kernel = "model.diffusion_model.input_blocks.0.0.weight"
        theirs[kernel] = np.ascontiguousarray(theirs[kernel][:, :4])
    path = write(tmp_path / "start.safetensors", theirs)
    with open_start(micro(), {field: path}, jax.random.key(7)) as start:
        assert sorted(start.fresh) == sorted(adapters(boxed))
        for name, values in drawn(boxed, 7).items():
            assert np.array_equal(start.leaf(name), values)


def test_converted_models_keep_adapters_and_an_export_leaves_them_out(
    tmp_path, boxed, release_file
):
    params = flat(load.load_release(release_file, micro()))
    trained = {path: params[path] + 1 for path in adapters(boxed)}
    tree = traverse_util.unflatten_dict({**params, **trained}, sep="/")
    for section, of_section in tree.items():
        converted.save_tree(converted.section_path(tmp_path / "model", section), of_section)
    converted.write_description(tmp_path / "model", micro(), [])
    _, again = load.load_pretrained(tmp_path / "model")
    assert_read(flat(again), trained)

    with (
        pytest.warns(UserWarning, match="carries no"),
        pytest.warns(UserWarning, match="parameters that no release has") as caught,
    ):
        export(tmp_path / "model", tmp_path / "again.safetensors")
    first, *others = adapters(boxed)
    said = f"leaves out {1 + len(others)} parameters that no release has: {first}, {others[0]}, "
    assert said in str(caught[0].message)
    exported = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    parameters = {name: micro_tensors()[name] for name in release_tensors(boxed)}
    assert different(exported, parameters) == []
    fates = unused_tensors(text_layers=2)
    assert all(fates[name] == "rebuilt" for name in set(exported) - set(parameters))
