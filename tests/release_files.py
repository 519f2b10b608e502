"""Release files of the small models, with golden weights."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import golden_weights
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.release import release_tensors, unused_tensors

GOLDEN = Path(__file__).parent / "golden"
FROZEN = ("first_stage_model.", "cond_stage_model.", "embedder.")


def manifest(kind: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a release, by name."""
    text = (GOLDEN / f"manifest_{kind}.json").read_text()
    return {name: tuple(shape) for name, (shape, _) in json.loads(text).items()}


def learned(kind: str) -> dict[str, np.ndarray]:
    """All tensors of a release but the buffers of its schedule."""
    return golden_weights.build({name: [shape, ""] for name, shape in manifest(kind).items()})


def micro() -> ConfigDict:
    """The config of the smallest model."""
    return load_config(Path(__file__).parent / "configs" / "micro.py")


@functools.cache
def _micro_tensors() -> dict[str, np.ndarray]:
    shapes = {name: t.shape for name, t in release_tensors(abstract_params(micro())).items()}
    shapes |= {
        name: (3,) for name, fate in unused_tensors(text_layers=2).items() if fate == "carried"
    }
    return {name: golden_weights.tensor(name, shape) for name, shape in shapes.items()}


def micro_tensors(*, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """All learned tensors of its release file, but those of the names that start so."""
    return {name: v for name, v in _micro_tensors().items() if not name.startswith(without)}


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Writes a `.safetensors` file and returns its path."""
    safetensors.numpy.save_file(dict(tensors), path)
    return path


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two tensors are the same in type and in every bit."""
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def different(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """The names of `theirs` whose tensors are not the same bit for bit in `ours`."""
    return [name for name in theirs if not same_bits(ours[name], theirs[name])]


def files_in(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
