"""The DreamSim in PyTorch that ours is timed against computes the golden vectors too."""

import benchmark_modules
import dreamsim_files
import numpy as np
import pytest

from dynamicrafter_jax.metrics.dreamsim import DreamSim
from dynamicrafter_jax.metrics.dreamsim_weights import load_dreamsim

torch = pytest.importorskip("torch")
(torch_vit,) = benchmark_modules.load("torch_vit")
torch.set_num_threads(1)  # threads of several workers would wait for one another


@pytest.mark.parametrize("kind", list(dreamsim_files.KINDS))
def test_it_computes_the_golden_vectors(tmp_path, relative_error, kind):
    sizes = dreamsim_files.SIZES["small"]
    model = DreamSim(dreamsim_files.KINDS[kind], **sizes._asdict())
    params = load_dreamsim(dreamsim_files.write(tmp_path, kind, sizes), kind, model)
    network = torch_vit.load(model, params)
    pictures = [dreamsim_files.picture(*which)[None] for which in dreamsim_files.PICTURES]
    vectors = np.concatenate([network(picture).numpy() for picture in pictures])
    assert relative_error(vectors, dreamsim_files.golden()[f"vectors_{kind}_small"]) < 1e-5
