import io
import json
import os
import pickle
import struct
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from numpy.typing import DTypeLike

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.tensors import (
    StoredTensor,
    describe_mismatch,
    layout_of,
    open_tensors,
    write_tensors,
)

BFLOAT16 = np.dtype(jnp.bfloat16)
DTYPES = [np.float64, np.float32, np.float16, BFLOAT16, np.int64, np.int32, np.uint8, np.bool_]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch checkpoints need the extra [convert]")


def some_tensors(dtype: DTypeLike = np.float32):
    return {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "kernel": np.arange(24).reshape(2, 3, 4)[:, ::-1].astype(dtype),
        "scalar": np.array(1, dtype),
        "nothing": np.zeros((0, 4), dtype),
    }


def read_all(path):
    with open_tensors(path) as tensors:
        for tensor in tensors.values():
            values = tensor.read()
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype)
        return {name: np.array(tensor.read()) for name, tensor in tensors.items()}


def assert_same(ours, expected):
    assert set(ours) == set(expected)
    for name, values in expected.items():
        assert ours[name].dtype == values.dtype and np.array_equal(ours[name], values), name


def refusal(path):
    """The one line that opening `path` is refused with."""
    with pytest.raises(UserError) as caught, open_tensors(path):
        pass
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_safetensors_are_read(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(some_tensors(dtype), path)
    assert_same(read_all(path), some_tensors(dtype))


def test_bytes_of_bfloat16_are_taken_as_they_are(tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    path = tmp_path / "model.safetensors"
    bits = struct.pack("<3H", 0x3F80, 0xC0A0, 0x7F7F)  # 1, -5 and the largest
    path.write_bytes(struct.pack("<Q", len(header)) + header + bits)
    values = read_all(path)["w"]
    assert values.astype(np.float64).tolist() == [1.0, -5.0, 2.0**127 * (2 - 2**-7)]


@pytest.mark.parametrize("extension", ["ckpt", "pt", "pth", "bin"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_plain_state_dicts_are_read(torch, tmp_path, extension, zipped):
    path = tmp_path / f"model.{extension}"
    state = {name: torch.from_numpy(values) for name, values in some_tensors().items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_all(path), some_tensors())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_torch_types_are_read(torch, tmp_path, dtype):
    path = tmp_path / "model.pt"
    kind = {"bool": torch.bool}.get(np.dtype(dtype).name, getattr(torch, np.dtype(dtype).name))
    values = {name: v.astype(np.float64) for name, v in some_tensors().items()}
    torch.save({name: torch.from_numpy(v).to(kind) for name, v in values.items()}, path)
    assert_same(read_all(path), {name: v.astype(dtype) for name, v in values.items()})


def test_views_and_parameters_are_read(torch, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "transposed": base.T,
        "row": base[1],
        "half": base.T.bfloat16()[:, 1],
        "learned": torch.nn.Parameter(base),
    }
    torch.save(state, tmp_path / "model.pt")
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "transposed": numbers.T,
        "row": numbers[1],
        "half": numbers.T[:, 1].astype(BFLOAT16),
        "learned": numbers,
    }
    assert_same(read_all(tmp_path / "model.pt"), expected)


def test_lightning_checkpoints_hold_a_state_dict(torch, tmp_path):
    state = {name: torch.from_numpy(values) for name, values in some_tensors().items()}
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.9.3",
        "state_dict": {**state, "note": "no tensor"},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "hyper_parameters": {"lr": 1e-5},
        "module": {"of_something_else": torch.zeros(2)},
    }
    torch.save(content, tmp_path / "model.ckpt")
    assert_same(read_all(tmp_path / "model.ckpt"), some_tensors())


def test_deepspeed_checkpoints_hold_a_module_with_a_prefix(torch, tmp_path):
    state = {
        f"_forward_module.{name}": torch.from_numpy(values)
        for name, values in some_tensors().items()
    }
    content = {"module": state, "optimizer": None, "dp_world_size": 8}
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    assert_same(read_all(tmp_path / "mp_rank_00_model_states.pt"), some_tensors())


def test_a_name_with_and_without_prefix_is_refused(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"module": {"_forward_module.w": torch.ones(1), "w": torch.ones(1)}}, path)
    assert "holds the tensor w twice" in refusal(path)


def test_reading_is_lazy(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(some_tensors(), path)
    reads = []

    class Watched:
        def __init__(self, *args, **kwargs):
            self._file = safetensors.safe_open(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_tensor(self, name):
            reads.append(name)
            return self._file.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self._file, name)

    monkeypatch.setattr("dynamicrafter_jax.weights.tensors.safe_open", Watched)
    with open_tensors(path) as tensors:
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: values.shape for name, values in some_tensors().items()
        }
        assert reads == []
        tensors["matrix"].read()
        assert reads == ["matrix"]


class Mischief:
    """Unpickled in the ordinary way, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "instead"])
def test_a_pickle_is_never_executed(torch, tmp_path, zipped, place):
    marker, path = tmp_path / "marker", tmp_path / "model.ckpt"
    content = {"state_dict": {"w": torch.ones(2)}, "callbacks": Mischief(marker)}
    if place == "instead":
        content = Mischief(marker)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "run code" in message and "mkdir" in message and "safetensors" in message
    assert not marker.exists()

    torch.load(path, weights_only=False)  # the file does run code, had it been let
    assert marker.exists()


def test_a_bare_pickle_is_never_executed(torch, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Mischief(marker), protocol=2))
    assert "mkdir" in refusal(path)
    assert not marker.exists()


def test_pytorch_files_need_pytorch(tmp_path, monkeypatch):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(path)
    assert "pip install dynamicrafter-jax[convert]" in message and ".safetensors" in message


@pytest.mark.parametrize("version", ["2.5.1", "2.9.1+cu128"])
def test_pytorch_that_can_be_broken_out_of_is_refused(torch, tmp_path, monkeypatch, version):
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.ones(1)}, path)
    monkeypatch.setattr(torch, "__version__", version)
    assert f"PyTorch {version} can be made to run code" in refusal(path)


def test_a_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "model.safetensors")


def test_a_directory(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert "is a directory" in refusal(tmp_path / "model.safetensors")


def test_an_empty_file(tmp_path):
    (tmp_path / "model.ckpt").touch()
    assert "is empty" in refusal(tmp_path / "model.ckpt")


def test_an_unknown_extension(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"anything")
    assert ".safetensors, .ckpt" in refusal(tmp_path / "model.onnx")


def test_a_remote_file():
    assert "copy the file to this machine" in refusal("gs://bucket/model.safetensors")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, kept):
    whole = safetensors.numpy.save({"w": np.ones((64, 64), np.float32)})
    (tmp_path / "model.safetensors").write_bytes(whole[: int(len(whole) * kept)])
    assert "truncated" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_checkpoints(torch, tmp_path, zipped, kept):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(64, 64)}, buffer, _use_new_zipfile_serialization=zipped)
    whole = buffer.getvalue()
    (tmp_path / "model.ckpt").write_bytes(whole[: int(len(whole) * kept)])
    refusal(tmp_path / "model.ckpt")


def test_files_of_another_kind(torch, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "no model")
    assert "not a PyTorch checkpoint" in refusal(tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors" * 100)
    assert "not a .safetensors file" in refusal(tmp_path / "model.safetensors")


def test_no_tensors(torch, tmp_path):
    for content in ({"epoch": 1}, [torch.ones(2)], torch.ones(2), {"state_dict": {}}):
        torch.save(content, tmp_path / "model.pt")
        assert "holds no tensors" in refusal(tmp_path / "model.pt")
    safetensors.numpy.save_file({}, tmp_path / "model.safetensors")
    assert "holds no tensors" in refusal(tmp_path / "model.safetensors")


def test_types_that_numpy_does_not_have(torch, tmp_path):
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.pt")
    assert "tensor w has the type complex64" in refusal(tmp_path / "model.pt")
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "model.pt")
    assert "tensor w is sparse" in refusal(tmp_path / "model.pt")
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}})
    raw = struct.pack("<Q", len(header)) + header.encode() + b"\0"
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert "tensor w has the type F8_E4M3" in refusal(tmp_path / "model.safetensors")


def stored(tensors):
    return {
        name: StoredTensor(values.shape, values.dtype, lambda values=values: values)
        for name, values in tensors.items()
    }


def test_written_files_are_what_the_library_reads(tmp_path):
    tensors = {
        f"{name}.{np.dtype(dtype).name}": values
        for dtype in (np.uint8, *DTYPES)
        for name, values in some_tensors(dtype).items()
    }
    path = tmp_path / "model.safetensors"
    layout = layout_of(stored(tensors))
    with path.open("wb") as file:
        write_tensors(file, layout, ((name, tensors[name]) for name in layout))
    assert_same(safetensors.numpy.load_file(path), tensors)
    raw = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + header_bytes])
    assert (8 + header_bytes) % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert all(
        entry["data_offsets"][0] % tensors[name].dtype.itemsize == 0
        for name, entry in header.items()
    )


@pytest.mark.parametrize(
    "sent",
    [
        {"a": np.ones(2, np.float32)},
        {"b": np.ones(2, np.float32), "a": np.ones(2, np.float32)},
        {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)},
        {"a": np.ones(2, np.float32), "b": np.ones(2, np.float16)},
        {name: np.ones(2, np.float32) for name in "abc"},
    ],
)
def test_writing_something_else_than_announced_is_a_defect(tmp_path, sent):
    layout = {name: (np.dtype(np.float32), (2,)) for name in "ab"}
    with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="tensor"):
        write_tensors(file, layout, sent.items())


def test_mismatch_lists_what_is_wrong():
    assert describe_mismatch({"a": (1,), "b": ()}, {"b": (), "a": (1,)}) == ""
    message = describe_mismatch({"a": (1,), "b": (2, 3)}, {"b": (3, 2), "c": ()})
    assert message == "1 missing: a; 1 unexpected: c (); 1 misshapen: b (3, 2) instead of (2, 3)"


def test_a_long_mismatch_is_counts_and_three_names():
    many = {f"t{i}": (1,) for i in range(14)}
    assert describe_mismatch(many, {}) == "14 missing: t0, t1, t2, and 11 more"
    other = {f"u{i}": (2,) for i in range(5)} | {"t13": (2,)}
    assert describe_mismatch(many, other) == (
        "13 missing: t0, and 12 more; 5 unexpected: u0 (2,), and 4 more; "
        "1 misshapen: t13 (2,) instead of (1,)"
    )
    assert describe_mismatch(many, {}, most=None) == f"14 missing: {', '.join(many)}"
