from pathlib import Path

import i3d_files
import pytest
import safetensors.numpy

from dynamicrafter_jax.metrics.i3d_weights import load_i3d


@pytest.fixture(scope="session")
def i3d_params(tmp_path_factory):
    """The golden weights of I3D, as they come out of a file."""
    path: Path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    safetensors.numpy.save_file(i3d_files.weights(), path)
    return load_i3d(path)
