"""Sources of a run's random numbers: a seed, or a file of another run's draws.

The arrays of both have the batch axis first, so a batch can be split over devices.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Key

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder

# The draws of one sample, as the numbers that are folded into its key.
_POSTERIOR_FIRST, _POSTERIOR_LAST, _INITIAL, _STEP = range(4)


@runtime_checkable
class Noise(Protocol):
    """Standard normal draws for a batch; `shape` is one sample's, without the batch axis."""

    def posterior(self, last: bool, shape: tuple[int, ...]) -> Float[Array, "b h w z"]:
        """Returns the noise of the VAE's posterior for the first or the last frame's image."""
        ...

    def initial(self, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """Returns the noise that sampling starts from."""
        ...

    def step(self, index: Array, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """Returns the noise that the solver adds at a step; 0 is the highest timestep."""
        ...


class KeyedNoise(NamedTuple):
    """Noise drawn from one key per sample, so that a sample is the same in any batch."""

    keys: Key[Array, " b"]

    @classmethod
    def from_seed(cls, seed: int, sample_indices: Sequence[int]) -> "KeyedNoise":
        """Makes the keys by folding each sample's global index into the seed."""
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        return cls(fold(jax.random.key(seed), jnp.asarray(sample_indices, jnp.uint32)))

    def posterior(self, last: bool, shape: tuple[int, ...]) -> Float[Array, "b h w z"]:
        """See `Noise.posterior`."""
        return self._draw(_POSTERIOR_LAST if last else _POSTERIOR_FIRST, shape)

    def initial(self, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """See `Noise.initial`."""
        return self._draw(_INITIAL, shape)

    def step(self, index: Array, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """See `Noise.step`."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _STEP))(self.keys)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def _draw(self, stream: int, shape: tuple[int, ...]) -> Array:
        def draw(key: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, stream), shape)

        return jax.vmap(draw)(self.keys)


class ReplayedNoise(NamedTuple):
    """The draws of another run, given as arrays."""

    posterior_noise: Float[Array, "b frames h w z"]
    initial_noise: Float[Array, "b t h w z"]
    step_noise: Float[Array, "b steps t h w z"]

    def posterior(self, last: bool, shape: tuple[int, ...]) -> Float[Array, "b h w z"]:
        """See `Noise.posterior`."""
        return self.posterior_noise[:, -1 if last else 0]

    def initial(self, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """See `Noise.initial`."""
        return self.initial_noise

    def step(self, index: Array, shape: tuple[int, ...]) -> Float[Array, "b t h w z"]:
        """See `Noise.step`."""
        return self.step_noise[:, index]


def read_noise(path: str | epath.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a noise file, an `.npz`; nothing in it is executed.

    Raises:
        UserError: The file is missing or not an `.npz` of plain arrays.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"no noise file {path}: give an .npz with posterior_noise, x_T, step_noise")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in _REPLAYED}
    except Exception as error:
        refuse_placeholder(path, path)
        raise UserError(f"cannot read {path} as an .npz of arrays: {error}") from error


def replay(arrays: dict[str, Any], batch: int, steps: int, shape: tuple[int, ...]) -> ReplayedNoise:
    """Returns the draws of a run of the PyTorch release, given in the order it draws them.

    Args:
        arrays: `posterior_noise` (b t, h, w, z), one for each frame, clip by clip; `x_T`
            (b, t, h, w, z); `step_noise` (steps, b, t, h, w, z), highest timestep first.
        batch: Clips in this run.
        steps: Solver steps of this run.
        shape: Shape of one clip's latents, (t, h, w, z).

    Raises:
        UserError: An array is missing, has another shape, or is not finite.
    """
    t, *frame = shape
    expected = {
        "posterior_noise": (batch * t, *frame),
        "x_T": (batch, *shape),
        "step_noise": (steps, batch, *shape),
    }
    for name, wanted in expected.items():
        if name not in arrays:
            raise UserError(f"the noise has no array {name!r} of shape {wanted}")
        got = np.shape(arrays[name])
        if got != wanted:
            raise UserError(
                f"the noise's {name} has shape {got}, but this run needs {wanted}: "
                f"{batch} clip(s) of {t} frames, {steps} steps"
            )
        if not np.issubdtype(np.asarray(arrays[name]).dtype, np.floating):
            raise UserError(f"the noise's {name} is of type {arrays[name].dtype}, not floating")
        if not math.isfinite(float(np.sum(arrays[name], dtype=np.float64))):
            raise UserError(f"the noise's {name} holds NaN or infinite values")
    posterior, initial, step = (np.asarray(arrays[name], np.float32) for name in _REPLAYED)
    return ReplayedNoise(
        jnp.asarray(posterior.reshape(batch, *shape)),
        jnp.asarray(initial),
        jnp.asarray(np.moveaxis(step, 1, 0)),
    )


_REPLAYED = ("posterior_noise", "x_T", "step_noise")
