"""Rows of finished clips on disk, in parts, so that an interrupted run can be resumed."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Shaped

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.measures import Measure
from dynamicrafter_jax.metrics.features import Features, check_same_settings, merge_features
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.sampling.bulk.manifest import fingerprint

_DIGITS = 16


class Store:
    """A folder of parts: `SET/MEASURE-FINGERPRINT/part-PROCESS-NUMBER.npz`.

    The fingerprint is of the measure's settings, and a clip's key has a hash of everything that
    determines its frames. So rows from other files or settings may be there too, but are not used.
    """

    def __init__(self, folder: epath.PathLike, process: int = 0) -> None:
        """Opens a folder, which may be missing.

        Args:
            folder: The folder.
            process: Number of this process, which writes its own parts.
        """
        self._folder = as_path(folder)
        self._process = process
        self._known: dict[tuple[str, str], list[Features]] = {}

    def finished(self, set_name: str, measure: Measure) -> set[str]:
        """Returns the keys of the clips whose rows are there."""
        parts = self._parts(set_name, measure)
        return {key for part in parts for key in part.names}

    def add(
        self,
        set_name: str,
        measure: Measure,
        keys: Sequence[str],
        values: Shaped[np.ndarray, "n ..."],
    ) -> None:
        """Writes rows. They are on disk when this returns.

        Raises:
            UserError: The rows can't be written, or are not finite.
        """
        if not np.isfinite(values).all():
            bad = [k for k, row in zip(keys, values, strict=True) if not np.isfinite(row).all()]
            raise UserError(
                f"{measure.name} gives NaN or infinite values for {', '.join(map(name_of, bad))}: "
                "check the clips and the weights"
            )
        made = Features(np.asarray(values, np.float32), tuple(keys), measure.settings)
        parts = self._parts(set_name, measure)
        made.save(self._place(set_name, measure) / self._free(set_name, measure))
        parts.append(made)

    def load(self, set_name: str, measure: Measure, keys: Sequence[str]) -> Features:
        """Returns the rows of some clips, in the order of the keys, labelled with their names.

        Raises:
            UserError: A row is missing.
        """
        # Two runs may have written the same row; either one will do.
        seen: set[str] = set()
        parts = []
        for part in self._parts(set_name, measure):
            new = [key for key in part.names if key not in seen]
            seen.update(new)
            parts.append(part.select(new))
        rows = merge_features(parts).select(keys)
        return Features(rows.values, tuple(map(name_of, keys)), rows.settings)

    def reread(self) -> None:
        """Forgets what was read, so that rows from other processes are found."""
        self._known.clear()

    def _place(self, set_name: str, measure: Measure) -> epath.Path:
        return self._folder / set_name / f"{measure.name}-{fingerprint(measure.settings)[:8]}"

    def _parts(self, set_name: str, measure: Measure) -> list[Features]:
        known = (set_name, measure.name)
        if known not in self._known:
            place = self._place(set_name, measure)
            found = [Features.load(f) for f in sorted(place.glob("part-*.npz"))]
            for part in found:
                check_same_settings(part.settings, measure.settings)
            self._known[known] = found
        return self._known[known]

    def _free(self, set_name: str, measure: Measure) -> str:
        """Returns the name of a file that does not exist yet."""
        own = f"part-{self._process:05d}-"
        place = self._place(set_name, measure)
        taken = [os.fspath(file.name) for file in place.glob(f"{own}*.npz")]
        last = max((int(name[len(own) : -len(".npz")]) for name in taken), default=-1)
        return f"{own}{last + 1:06d}.npz"


def key_of(name: str, digest: str) -> str:
    """Returns the key of a clip: its name, and a hash of everything that determines its frames."""
    return f"{name}@{digest[:_DIGITS]}"


def name_of(key: str) -> str:
    """Returns the name in a key."""
    return key.rpartition("@")[0]
