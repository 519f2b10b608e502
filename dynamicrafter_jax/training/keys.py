"""The random keys of a run, one for each use of its seed, so that no two uses share draws."""

import enum

import jax
from jaxtyping import Array, Key

# The numbers that are folded into the seed's key.
_PARAMETERS, _STEPS, _VALIDATION = range(3)


def parameter_key(seed: int) -> Key[Array, ""]:
    """Returns the key of fresh parameters; a run and the cache it reads draw the same ones."""
    return _key(seed, _PARAMETERS)


def step_key(seed: int) -> Key[Array, ""]:
    """Returns the key of training steps, into which sample numbers are folded."""
    return _key(seed, _STEPS)


def validation_key(seed: int) -> Key[Array, ""]:
    """Returns the key of validation losses, into which sample numbers are folded."""
    return _key(seed, _VALIDATION)


def _key(seed: int, use: int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.key(seed), use)


class Stream(enum.IntEnum):
    """The draws of one sample, as the numbers that are folded into its key."""

    POSTERIOR = 0
    NOISE = 1
    TIMESTEP = 2
    DROPOUT = 3
    MOVE = 4


def streams(keys: Key[Array, " b"], stream: Stream) -> Key[Array, " b"]:
    """Returns the key of one kind of draw for each sample."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, int(stream))
