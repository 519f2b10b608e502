"""Features of many clips: computed on all devices of a mesh, saved to files, merged and reused.

Several processes can each take a share of the clips, on a mesh of their own devices, and write a
file; `merge_features` then combines the files.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, PyTree, Shaped

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.arrays import read_arrays, write_arrays
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.weights.tensors import list_names

Network = Callable[[PyTree, Array], Array]
"""Takes parameters and a batch of clips; each row of the result depends on one clip only."""


@dataclasses.dataclass(frozen=True)
class Features:
    """A network's outputs for clips.

    Attributes:
        values: One row per clip.
        names: Names of the clips, without repetition.
        settings: Everything besides the clips that determines the values, as a JSON object: the
            network, the SHA-256 of its weights, preprocessing, frames. Features are compared and
            merged only if these are the same.
    """

    values: Float32[np.ndarray, "n d"]
    names: tuple[str, ...]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ValueError(f"{len(self.names)} names for {len(self.values)} rows of features")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise UserError(f"there are two features for the same clip: {list_names(repeated)}")

    def save(self, path: epath.PathLike) -> None:
        """Writes an `.npz` file atomically."""
        about = json.dumps({"names": self.names, "settings": dict(self.settings)}, allow_nan=False)
        write_arrays(path, features=self.values, about=np.asarray(about))

    @classmethod
    def load(cls, path: epath.PathLike) -> "Features":
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing, broken or holds something else.
        """
        stored = read_arrays(path, ("features", "about"))
        try:
            about = json.loads(str(stored["about"]))
            return cls(stored["features"], tuple(about["names"]), about["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} does not hold features of clips") from error

    def select(self, names: Sequence[str]) -> "Features":
        """Returns the features of some clips, in the given order.

        Raises:
            UserError: There are no features for one of them.
        """
        row = {name: i for i, name in enumerate(self.names)}
        if missing := [name for name in names if name not in row]:
            raise UserError(f"there are no features of {list_names(missing)}")
        return dataclasses.replace(
            self, values=self.values[[row[name] for name in names]], names=tuple(names)
        )


def merge_features(parts: Sequence[Features]) -> Features:
    """Returns the features of all parts, in order.

    Raises:
        UserError: There are no parts, their settings differ, or two have the same clip.
    """
    if not parts:
        raise UserError("there are no features to merge")
    for part in parts[1:]:
        check_same_settings(parts[0].settings, part.settings)
    names = tuple(name for part in parts for name in part.names)
    return Features(np.concatenate([part.values for part in parts]), names, parts[0].settings)


def check_same_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Checks that features with these settings may be compared.

    Raises:
        UserError: A setting differs; the message says which.
    """
    differing = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if differing:
        each = "; ".join(f"{key} is {a.get(key)} and {b.get(key)}" for key in differing)
        raise UserError(f"features made with different settings can't be combined: {each}")


class Extractor:
    """Runs a network over clips, a batch at a time, split over the devices of a mesh.

    Attributes:
        batch_size: Clips in a batch, over all devices.
    """

    def __init__(
        self, network: Network, params: PyTree, mesh: Mesh, *, clips_per_device: int = 1
    ) -> None:
        """Takes the network; nothing is compiled yet.

        Args:
            network: What to run; products of float32 are as exact as the devices allow.
            params: Its parameters, which are replicated on every device.
            mesh: The devices. If they belong to several processes, all must give the same clips.
            clips_per_device: Clips that each device processes at once.
        """
        self.batch_size = clips_per_device * sharding.batch_multiple(mesh)
        self._params = sharding.replicate(params, mesh)
        self._mesh = mesh

        def run(params: PyTree, clips: Array) -> Array:
            made = network(params, clips)
            return jax.lax.with_sharding_constraint(made, sharding.replicated(mesh))

        self._program = Program(run)

    def __call__(
        self, clips: Iterable[tuple[str, Shaped[np.ndarray, "..."]]]
    ) -> Iterator[tuple[tuple[str, ...], Float[np.ndarray, "_ ..."]]]:
        """Yields names and results of batches, while the next batch is computed.

        Args:
            clips: Names, and arrays of one shape and type.

        Raises:
            UserError: A clip has another shape than the first.
        """
        running = None
        try:
            for names, batch in self._batches(clips):
                made = self._start(batch)
                if running is not None:
                    yield _fetch(*running)
                running = names, made
        except Exception:  # of whatever reads the clips; it is raised again
            if running is not None:  # yield the batch before an error
                yield _fetch(*running)
            raise
        if running is not None:
            yield _fetch(*running)

    def _start(self, batch: np.ndarray) -> Array:
        """Starts the network on a batch, without waiting for the result."""
        with jax.default_matmul_precision("highest"), sharding.use_mesh(self._mesh):
            return self._program(self._params, sharding.split_batch(batch, self._mesh))

    def _batches(
        self, clips: Iterable[tuple[str, np.ndarray]]
    ) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """Yields names and full batches; the last is padded with zeros."""
        first, shape = "", None
        names, rows = [], []
        for name, clip in clips:
            if shape is None:
                first, shape = name, clip.shape
            if clip.shape != shape:
                raise UserError(
                    f"{name} is {_sizes(clip.shape)}, but {first} is {_sizes(shape)} (frames, "
                    "height, width): make all clips of one size and length"
                )
            names.append(name)
            rows.append(clip)
            if len(rows) == self.batch_size:
                yield tuple(names), np.stack(rows)
                names, rows = [], []
        if rows:
            missing = self.batch_size - len(rows)
            yield tuple(names), np.stack([*rows, *[np.zeros_like(rows[0])] * missing])


def _fetch(names: tuple[str, ...], made: Array) -> tuple[tuple[str, ...], np.ndarray]:
    """Waits for a batch, and drops its padding."""
    return names, np.asarray(made)[: len(names)]


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:-1]))
