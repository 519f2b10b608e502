"""The loss on held-out clips, always with the same noise and timesteps."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.data.loader import batches
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.training.feed import Feed, padded
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import Objective
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.step import Losses, weighted_losses


def validation_losses(
    objective: Objective,
    params: PyTree,
    batch: Batch,
    rng: Key[Array, ""],
    *,
    num_clips: int,
) -> Losses:
    """Returns the summed losses of clips, whose draws depend only on the clips' numbers.

    Clip i of n is evaluated at timestep (i + 1/2) / n of the whole process. So the mean over clips
    is also a mean over timesteps, and runs differ only through their parameters.

    Args:
        objective: See `objectives.make_objective`.
        params: All parameters.
        batch: The clips.
        rng: Key of the noise; the same each time.
        num_clips: How many clips there are in all batches.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch.sample_index)
    share = (batch.sample_index.astype(jnp.float32) + 0.5) / num_clips
    return weighted_losses(objective(params, batch, keys, share=share), batch.weight)


class Validation:
    """Held-out clips, which are read once and kept, and their loss for given parameters."""

    def __init__(self, batches: Sequence[Batch], losses: Program, rng: Key[Array, ""]) -> None:
        """Takes what does not change between calls.

        Args:
            batches: All clips, placed on the mesh.
            losses: `validation_losses` with all but parameters, batch and key bound.
            rng: Key of the noise, placed on the mesh.
        """
        self._batches = batches
        self._losses = losses
        self._rng = rng

    def __call__(self, params: dict[str, Any]) -> dict[str, float]:
        """Returns `validation_loss`, and `validation/quarter_1` to `_4`, as in `History`."""
        parts = [self._losses(params, batch, self._rng) for batch in self._batches]
        loss, weight, quarter_loss, quarter_weight = (
            np.sum([np.asarray(part[field]) for part in parts], axis=0) for field in range(4)
        )
        found = {"validation_loss": float(loss / weight)} if weight else {}
        for quarter in np.flatnonzero(quarter_weight):
            mean = quarter_loss[quarter] / quarter_weight[quarter]
            found[f"validation/quarter_{quarter + 1}"] = float(mean)
        return found


def open_validation(
    config: ConfigDict,
    settings: TrainSettings,
    objective: Objective,
    mesh: Mesh,
    key: Key[Array, ""],
) -> Validation | None:
    """Reads the clips of `data.validation`; returns None if it is unset or empty.

    No conditions are dropped.

    Raises:
        UserError: The clips can't be found.
    """
    if not config.data.validation:
        return None
    examples = open_examples(config, config.data.validation, settings.seed, training=False)
    count = settings.validation_clips
    size = settings.batch_size // settings.accumulation
    loader = batches(
        examples,
        batch_size=size,
        rows=sharding.local_rows(mesh, size),
        stop=-(-count // size),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )
    with contextlib.closing(loader):
        kept = list(Feed((padded(rows, count) for rows in loader), mesh))
    losses = functools.partial(validation_losses, objective, num_clips=count)
    return Validation(kept, Program(losses), sharding.replicate(key, mesh))
