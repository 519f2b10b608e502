"""Weights of I3D come out of every file the same, or not at all."""

import re

import i3d_files
import jax
import numpy as np
import pytest
import safetensors.numpy

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.i3d_weights import describe_i3d, load_i3d

# The names of the other PyTorch port, from which the TorchScript file in common use was made.
BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


def other_name(name):
    name = name.replace("logits.", "conv3d_0c_1x1.").replace(".bn.", ".batch3d.")
    name = re.sub(r"\.(b\d[ab]?)\.", lambda match: f".{BRANCHES[match[1]]}.", name)
    return name[0].lower() + name[1:]


def in_order():
    """Names in the order of the network, the last layer last."""
    return sorted(i3d_files.weights(), key=lambda name: (name.startswith("logits"), name))


def write(path, tensors):
    safetensors.numpy.save_file(dict(tensors), path)
    return path


def write_torchscript(path, tensors):
    """Writes modules of these names, that hold these tensors, compiled."""
    torch = pytest.importorskip("torch", reason="it makes the archive")

    class Root(torch.nn.Module):
        def forward(self, x):
            return x

    root = Root()
    for name, values in tensors.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        tensor = torch.from_numpy(values)
        if "running" in leaf:
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, torch.nn.Parameter(tensor))
    torch.jit.script(root).save(str(path))
    return path


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_state_dicts_of_the_port(tmp_path, i3d_params):
    torch = pytest.importorskip("torch", reason="it makes the file")
    state = {name: torch.from_numpy(values) for name, values in i3d_files.weights().items()}
    state["Conv3d_1a_7x7.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, tmp_path / "rgb_imagenet.pt")
    assert same(load_i3d(tmp_path / "rgb_imagenet.pt"), i3d_params)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_of_other_names(tmp_path, i3d_params):
    weights = i3d_files.weights()
    renamed = {other_name(name): weights[name] for name in in_order()}
    assert len(renamed) == len(weights) and "mixed_4d.branch_2.1.batch3d.running_var" in renamed
    path = write_torchscript(tmp_path / "i3d_torchscript.pt", renamed)
    assert same(load_i3d(path), i3d_params)


def layers():
    """The layers in the order of the network, by what their tensors' names start with."""
    return list(dict.fromkeys(name.rsplit(".", 2)[0] for name in in_order()))


def write_nameless(path, layers):
    """Writes a file whose names say nothing but what belongs together."""
    torch = pytest.importorskip("torch", reason="it makes the file")
    state = {
        f"layer{i}.{name.removeprefix(layer + '.')}": torch.from_numpy(values)
        for i, layer in enumerate(layers)
        for name, values in i3d_files.weights().items()
        if name.startswith(f"{layer}.")
    }
    torch.save(state, path)
    return path


@pytest.mark.parametrize("first", [True, False])
def test_order_tells_layers_without_names(tmp_path, i3d_params, first):
    ordered = layers()
    if first:
        ordered = [ordered[-1], *ordered[:-1]]
    assert same(load_i3d(write_nameless(tmp_path / "i3d.pt", ordered)), i3d_params)


def test_another_order_is_not_taken_for_it(tmp_path):
    """Where names say nothing, shapes do."""
    ordered = layers()
    for at in [i for i, name in enumerate(ordered) if name.endswith(".b0")]:
        ordered[at], ordered[at + 1] = ordered[at + 1], ordered[at]
    with pytest.raises(UserError, match=r"misshapen: .*Mixed_3b\.b0\.conv3d\.weight \(96, 192"):
        load_i3d(write_nameless(tmp_path / "i3d.pt", ordered))
    with pytest.raises(UserError, match="57 layers instead of 58"):
        load_i3d(write_nameless(tmp_path / "i3d.pt", layers()[1:]))


def test_incomplete_files_are_refused(tmp_path):
    weights, path = i3d_files.weights(), tmp_path / "i3d.safetensors"
    mean = "Mixed_4c.b1a.bn.running_mean"
    with pytest.raises(UserError, match=rf"1 missing: {mean}; 1 unexpected: other \(2,\)"):
        tensors = {name: values for name, values in weights.items() if name != mean}
        load_i3d(write(path, {**tensors, "other": np.zeros(2, np.float32)}))
    with pytest.raises(UserError, match=rf"1 misshapen: {mean} \(3,\) instead of \(112,\)"):
        load_i3d(write(path, {**weights, mean: np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match=f"{mean} holds NaN"):
        load_i3d(write(path, {**weights, mean: np.full(112, np.nan, np.float32)}))


def test_a_missing_file_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist: .*i3d_torchscript\.pt of"):
        load_i3d(tmp_path / "nowhere.pt")


def test_features_are_described_by_their_weights(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    described = describe_i3d(path)
    assert described["weights_sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")
    assert described != describe_i3d(path, half_pixel_centers=False)
