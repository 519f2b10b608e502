"""Places what the loader reads on each host on the mesh, as batches."""

import sys
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from dynamicrafter_jax import sharding
from dynamicrafter_jax.training.inputs import Batch


def to_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Places the rows that this process read on the mesh, as part of the global batch.

    Args:
        rows: Arrays by the names of `Batch`; `item` and `problem` are dropped.
        mesh: The mesh.
    """
    fields = {name: rows[name] for name in Batch._fields if name in rows}
    fields["sample_index"] = np.asarray(rows["index"] % 2**32, np.uint32)
    return Batch(**sharding.assemble_batch(fields, mesh))


class Feed:
    """Iterates over batches on the mesh, and warns about videos that could not be read.

    Attributes:
        rows: This process's part of the latest batch, on the host.
    """

    def __init__(self, loader: Iterator[Mapping[str, np.ndarray]], mesh: Mesh) -> None:
        """Takes a loader, and the mesh to place its batches on."""
        self.rows: Mapping[str, np.ndarray] = {}
        self._loader = loader
        self._mesh = mesh
        self._next: Batch | None = None
        self._named: set[int] = set()

    def peek(self) -> Batch:
        """Returns the next batch without consuming it."""
        self._next = next(self)
        return self._next

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        The first time that a video can't be read, a warning on stderr names it.
        """
        if self._next is not None:
            batch, self._next = self._next, None
            return batch
        self.rows = next(self._loader)
        for item, problem in zip(
            self.rows["item"].tolist(), self.rows["problem"].tolist(), strict=True
        ):
            if problem and item not in self._named:
                self._named.add(item)
                sys.stderr.write(f"warning: skipped {problem.decode('utf-8', 'replace')}\n")
        return to_batch(self.rows, self._mesh)


def padded(rows: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns rows with weight 0 for all samples but 0 to `count` - 1."""
    weight = np.where(rows["index"] < count, rows["weight"], 0).astype(np.float32)
    return {**rows, "weight": weight}
