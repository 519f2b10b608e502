"""What is planned with is what the loader gives."""

import jax
import numpy as np
import pytest

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.planning.programs import abstract_batch
from dynamicrafter_jax.training.feed import to_batch


@pytest.mark.parametrize("frames", [None, 4])
def test_planned_batches_are_those_of_the_loader(frames):
    config = load_config("demo")
    config.data.frames = frames
    mesh = sharding.mesh_of(config)
    example = open_examples(config, "synthetic:train", 0)(0)
    rows = {name: np.stack([array] * 2) for name, array in example.items()}
    with sharding.use_mesh(mesh):
        planned = abstract_batch(config, networks_of(config), mesh, 2)
        given = to_batch(rows, mesh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), planned) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), given
    )
