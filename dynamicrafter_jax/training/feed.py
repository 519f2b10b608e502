"""From what the loader reads on each host to batches on the mesh."""

import sys
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from dynamicrafter_jax import sharding
from dynamicrafter_jax.training.inputs import Batch


def to_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Places the rows that this process read, as part of the global batch.

    Args:
        rows: Arrays by the names of `Batch`, with `item` and `problem`, which stay behind.
        mesh: Where to.
    """
    fields = {name: rows[name] for name in Batch._fields if name in rows}
    fields["sample_index"] = np.asarray(rows["index"] % 2**32, np.uint32)
    return Batch(**sharding.assemble_batch(fields, mesh))


class Feed:
    """Iterates over batches on the mesh, and names what could not be read.

    Attributes:
        rows: What the latest batch was made of: this process's part of it, on the host.
    """

    def __init__(self, loader: Iterator[Mapping[str, np.ndarray]], mesh: Mesh) -> None:
        """Takes what the loader gives, and a mesh to place it on."""
        self.rows: Mapping[str, np.ndarray] = {}
        self._loader = loader
        self._mesh = mesh
        self._next: Batch | None = None
        self._named: set[int] = set()

    def peek(self) -> Batch:
        """Returns the next batch without taking it."""
        self._next = next(self)
        return self._next

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        A video that can't be read is named on stderr, the first time.
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
    """Returns rows with no weight but that of samples 0 to `count` - 1."""
    weight = np.where(rows["index"] < count, rows["weight"], 0).astype(np.float32)
    return {**rows, "weight": weight}
