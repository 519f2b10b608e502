"""A run of the smallest model that has been trained, without the time that it takes."""

import functools
from pathlib import Path

import jax
import numpy as np
import tiny

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.optimizer import make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state, create_state
from dynamicrafter_jax.training.workdir import claim_workdir, record_session


def make(root: Path) -> Path:
    """Writes a workdir whose temporal layers are frozen, with checkpoints 2 and 4."""
    model = tiny.micro()
    config = model.config.copy_and_resolve_references()
    config.train.update(trainable="temporal_frozen", ema_decay=0.5)
    settings = settings_of(TrainSettings, "train", config.train)
    mesh, optimizer = sharding.make_mesh(1), make_optimizer(settings)
    abstract = abstract_state(abstract_models(model.models), optimizer, settings, mesh)
    params = jax.tree.map(np.asarray, model.params)
    state = create_state(
        abstract,
        lambda path: functools.reduce(lambda tree, key: tree[key], path.split("/"), params),
        optimizer,
    )
    claim_workdir(root, config)
    weights = [{"name": "model.ckpt", "sha256": "0" * 64}]
    record_session(root, config=config, weights=weights, mesh=mesh)
    with Checkpoints(root, keep_last=2) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        for step in (2, 4):
            moved = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
            averaged = jax.tree.map(lambda leaf, step=step: leaf - step, state.params)
            step = np.asarray(step, np.int32)
            checkpoints.save(state._replace(step=jax.device_put(step), params=moved, ema=averaged))
    return root
