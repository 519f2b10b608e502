"""TorchScript archives are read as data, and hold what PyTorch put there."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.torchscript import is_torchscript, open_torchscript

torch = pytest.importorskip("torch", reason="it makes the archives")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Unit(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 3, 1, bias=False)
        self.norm = torch.nn.BatchNorm3d(3, eps=1e-3)
        self.sizes = [1, 2]
        self.words = ["a", "b"]

    def forward(self, x):
        return self.norm(self.conv(x))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        base = torch.arange(24.0).reshape(2, 3, 4)
        self.branch = torch.nn.Sequential(Unit(), torch.nn.ReLU(), Unit())
        self.half_precision = torch.nn.Parameter(torch.tensor([1.5, -2.0]).half())
        self.register_buffer("view", base[1:, ::2].transpose(1, 2))
        self.register_buffer("nothing", torch.zeros(0, 2))

    def forward(self, x):
        return self.branch(x)


def save(path, how):
    """Writes an archive and returns it, and the tensors that are in it."""
    network = Network().eval()
    clip = torch.zeros(1, 3, 2, 2, 2)
    compiled = torch.jit.script(network) if how == "script" else torch.jit.trace(network, clip)
    compiled.save(str(path))
    return path, {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def rewrite(path, changed):
    """Replaces files of an archive, by what their names end with."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            (new,) = [new for end, new in changed.items() if name.endswith(end)] or [data]
            archive.writestr(name, new)


def refusal(path):
    with pytest.raises(UserError) as caught, open_torchscript(path) as tensors:
        for tensor in tensors.values():
            tensor.read()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_all_tensors_are_read_by_name(tmp_path, how):
    path, expected = save(tmp_path / "model.pt", how)
    assert is_torchscript(path)
    with open_torchscript(path) as tensors:
        assert set(tensors) == set(expected)
        for name, values in expected.items():
            read = tensors[name].read()
            assert (tensors[name].shape, tensors[name].dtype) == (values.shape, values.dtype)
            assert read.dtype == values.dtype and np.array_equal(read, values), name


def test_modules_keep_their_order(tmp_path):
    path, _ = save(tmp_path / "model.pt", "script")
    with open_torchscript(path) as tensors:
        names = [name for name in tensors if name.endswith("weight")]
    order = ["0.conv", "0.norm", "2.conv", "2.norm"]
    assert names == [f"branch.{module}.weight" for module in order]


class Mischief:
    """Unpickled in the ordinary way, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_is_executed(tmp_path):
    path, _ = save(tmp_path / "model.pt", "script")
    marker = tmp_path / "marker"
    data = pickle.dumps({"x": Mischief(marker)}, protocol=2)
    rewrite(path, {"/data.pkl": data})
    message = refusal(path)
    assert "mkdir" in message and not marker.exists()

    pickle.loads(data)  # it does run code, had it been let
    assert marker.exists()


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({}, 2)[:-1]]
)
def test_broken_pickles_are_refused(tmp_path, data):
    path, _ = save(tmp_path / "model.pt", "script")
    rewrite(path, {"/data.pkl": data})
    assert "broken" in refusal(path)


def test_short_storages_are_refused(tmp_path):
    path, _ = save(tmp_path / "model.pt", "script")
    rewrite(path, {"/data/1": b"\0" * 8})
    assert "reaches past" in refusal(path)


def test_frozen_modules_have_no_names(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.freeze(torch.jit.script(Network().eval())).save(str(path))
    assert "holds no tensors by name" in refusal(path)


def test_other_files_are_no_torchscript(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no archive")
    for name in ("state.pt", "text.pt", "nowhere.pt"):
        assert not is_torchscript(tmp_path / name)
    assert "not a TorchScript archive" in refusal(tmp_path / "state.pt")
