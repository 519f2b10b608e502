"""The random keys of a run, one for each use of its seed, so that no two uses share draws."""

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
