"""The I3D in PyTorch that ours is timed against computes the golden numbers too."""

import json
from pathlib import Path

import benchmark_modules
import golden_weights
import numpy as np
import pytest

torch = pytest.importorskip("torch")
(torch_i3d,) = benchmark_modules.load("torch_i3d")
torch.set_num_threads(1)  # threads of several workers would wait for one another

GOLDEN = Path(__file__).parents[1] / "golden"


def test_i3d_computes_the_golden_numbers(relative_error):
    manifest = json.loads((GOLDEN / "manifest_i3d.json").read_text())
    golden = np.load(GOLDEN / "video_metrics.npz")
    network = torch_i3d.I3D().eval().requires_grad_(False)
    assert list(network.state_dict()) == list(manifest)
    tensors = {
        name: torch.from_numpy(values) * (1.6 if name.endswith("conv3d.weight") else 1)
        for name, values in golden_weights.build(manifest).items()
    }
    assert not network.load_state_dict(tensors, strict=False).unexpected_keys
    clip = np.stack(
        [
            golden_weights.picture(int(golden["clip_seed"]) + i // 4, 224, 224)
            * np.float32(0.5 + 0.03 * i)
            for i in range(16)
        ]
    )
    logits = network(torch.from_numpy(np.ascontiguousarray(clip.transpose(3, 0, 1, 2)))[None])
    assert relative_error(logits.numpy(), golden["logits"][:1]) < 1e-5


def test_parameters_are_complete_or_refused():
    unit = torch_i3d.Unit(2, 3)
    norm = {name: np.full(3, i, np.float32) for i, name in enumerate(("scale", "mean", "var"))}
    kernel = np.arange(6, dtype=np.float32).reshape(1, 1, 1, 2, 3)
    params = {"conv": {"kernel": kernel}, "norm": {**norm, "bias": np.ones(3, np.float32)}}
    torch_i3d.load(unit, params)
    assert unit.bn.running_var.tolist() == [2, 2, 2] and unit.bn.weight.tolist() == [0, 0, 0]
    assert unit.conv3d.weight[:, :, 0, 0, 0].tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(RuntimeError, match=r"Missing key.*bn\.running_mean"):
        torch_i3d.load(unit, {**params, "norm": {}})
