"""The keys of a run, one for each use of its seed: no two uses may share their draws."""

import jax
from jaxtyping import Array, Key

# What is folded into the key of the seed.
_PARAMETERS, _STEPS, _VALIDATION = range(3)


def parameter_key(seed: int) -> Key[Array, ""]:
    """Returns the key of fresh parameters: a run and the cache that it reads draw the same."""
    return _key(seed, _PARAMETERS)


def step_key(seed: int) -> Key[Array, ""]:
    """Returns the key of training steps, into which the numbers of samples are folded."""
    return _key(seed, _STEPS)


def validation_key(seed: int) -> Key[Array, ""]:
    """Returns the key of validation losses, likewise."""
    return _key(seed, _VALIDATION)


def _key(seed: int, use: int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.key(seed), use)
