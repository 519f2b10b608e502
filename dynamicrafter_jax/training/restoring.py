"""The state that a process of a run goes on from."""

import optax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.state import TrainState, create_state
from dynamicrafter_jax.warm_start import Start, open_start


def start_or_restore(
    config: ConfigDict,
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    key: Key[Array, ""],
) -> tuple[TrainState, Start | None]:
    """Returns the state of the newest checkpoint, or what training starts from.

    Args:
        config: Its section `init` says what training starts from.
        abstract: See `abstract_state`.
        optimizer: See `optimizer.make_optimizer`.
        checkpoints: Of the run.
        key: Of parameters that nothing gives.

    Returns:
        The state, and where its parameters come from, None if it was restored. Nothing is written:
        the frozen parameters of a new state are still to be saved.

    Raises:
        UserError: If a checkpoint or a file can't be used.
    """
    if checkpoints.latest_step() is not None:
        frozen = checkpoints.restore_frozen(abstract.frozen)
        return checkpoints.restore(abstract._replace(frozen=frozen)), None
    with open_start(config, config.init, key) as start:
        return create_state(abstract, start.leaf, optimizer), start
