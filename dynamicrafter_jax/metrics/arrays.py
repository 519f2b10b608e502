"""Named arrays in `.npz` files, which are written atomically and hold no pickled objects."""

import io
import zipfile
from collections.abc import Collection

import numpy as np
from etils import epath
from jaxtyping import Shaped

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder


def write_arrays(path: epath.PathLike, **arrays: Shaped[np.ndarray, "..."]) -> None:
    """Writes arrays by name; see `files.atomic`.

    Raises:
        UserError: The file can't be written.
    """
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(
    path: epath.PathLike, names: Collection[str]
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the arrays with these names.

    Raises:
        UserError: The file is missing or broken, or lacks one of them.
    """
    data = files.read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except KeyError:
        raise UserError(f"{path} does not hold {' and '.join(names)}: give another file") from None
    except (ValueError, EOFError, OSError, TypeError, zipfile.BadZipFile) as error:
        refuse_placeholder(path, data)
        raise UserError(f"{path} is not a complete .npz file: make or copy it again") from error
