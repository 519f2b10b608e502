"""A small model that is otherwise like the 256 release; the golden files `tiny_eps_*` are its."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_256

# Config files are loaded by path and so cannot import each other.
shrink = runpy.run_path(str(Path(__file__).with_name("tiny_v.py")))["shrink"]


def get_config() -> ConfigDict:
    """Returns the small eps-prediction model."""
    config = shrink(i2v_256.get_config())
    config.name = "tiny_eps"
    return config
