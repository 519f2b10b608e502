"""Settings under which every test runs, and the measure of parity.

JAX reads the environment when it is first imported. The settings are environment variables
rather than `jax.config` calls so that the commands that tests start inherit them.

The import hook checks shapes and types at every call of the package, and whenever one of its
dataclasses is built. JAX builds a registered dataclass anew around whatever a tree map returns, so
a pytree whose fields are annotated with shapes must be a `NamedTuple`, which is not checked so.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from needed import module_needed
from numpy.typing import ArrayLike
from quick import xla_flags

assert "jax" not in sys.modules, "something imported jax before its settings were made"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# Workers, commands, later runs and other clones share what was compiled.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/dynamicrafter_jax/tests").expanduser())
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
install_import_hook("dynamicrafter_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten() -> Iterator[None]:
    """Drops what a module compiled, so that a worker does not hold it to the end."""
    yield
    import jax

    sampler = sys.modules.get("dynamicrafter_jax.sampling.sampler")
    if sampler is not None:  # those of the smallest model, which most modules use, are held by it
        sampler._programs.cache_clear()
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps what compilers freed
        trim(0)


@pytest.fixture(scope="session")
def tpu_compiler() -> None:
    """Of TPUs that are not there."""
    module_needed("the TPU compiler", "libtpu", "tpu")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files: numbers computed by the PyTorch release."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def relative_error() -> Callable[[ArrayLike, ArrayLike], float]:
    """A function: max|ours - golden| / max|golden|, and NaN where ours has a NaN."""

    def measure(ours: ArrayLike, golden: ArrayLike) -> float:
        ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
        assert ours.shape == golden.shape, f"shape {ours.shape}, but golden {golden.shape}"
        return float(np.abs(ours - golden).max() / np.abs(golden).max())

    return measure
