"""The files of an artifact, and the one that describes the others.

- `artifact.json`: the inputs and outputs of the programs, the settings that they were made for, and
  the size and SHA-256 of every other file;
- `programs/NAME.bin`: the sampling function, exported by `jax.export`, for the platforms listed;
- `weights.safetensors`: the parameters by path, which the programs take as arguments;
- `tables.safetensors`: the solver's coefficients, which they also take as arguments.
"""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path, read_bytes, write_json
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder
from dynamicrafter_jax.runtime.provenance import sha256_of

DESCRIPTION_FILE = "artifact.json"
WEIGHTS_FILE = "weights.safetensors"
TABLES_FILE = "tables.safetensors"
FORMAT_VERSION = 1

RANDOM_IMPLEMENTATION = "threefry2x32"
"""Kind of the random keys, whose data programs take: it is part of the format."""

_FIELDS = {
    "format_version": int,
    "interpolation": bool,
    "num_passes": int,
    "settings": dict,
    "inputs": dict,
    "programs": dict,
    "files": dict,
}


def program_file(name: str) -> str:
    """Returns the path of the program called `name`, relative to the artifact."""
    return f"programs/{name}.bin"


def write_description(
    directory: epath.Path, description: dict[str, Any], names: Sequence[str]
) -> None:
    """Writes `description`, the format version, and sizes and hashes of the files `names`."""
    files = {
        name: {
            "bytes": (directory / name).stat().length,
            "sha256": sha256_of(directory / name),
        }
        for name in names
    }
    described = {"format_version": FORMAT_VERSION, **description, "files": files}
    write_json(directory / DESCRIPTION_FILE, described)


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Returns the description of an artifact.

    Raises:
        UserError: There is no artifact, or it has another format.
    """
    path = as_path(directory) / DESCRIPTION_FILE
    if not path.exists():
        raise UserError(f"{directory} is not an exported model: it has no {DESCRIPTION_FILE}")
    try:
        description = json.loads(read_bytes(path))
    except UserError:
        raise
    except ValueError as error:
        refuse_placeholder(path, path)
        raise UserError(f"{path} is not whole ({error}): copy the directory again") from error
    if not isinstance(description, dict) or "format_version" not in description:
        refuse_placeholder(path, path)
        raise UserError(f"{path} has no format_version: this is not an exported model")
    version = description["format_version"]
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{directory} has format {version}, newer than this code can read ({FORMAT_VERSION}): "
            "upgrade dynamicrafter-jax"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(description.get(name), kind):
            raise UserError(f"{path} is damaged: it has no {name}; copy the directory again")
    return description


def check_files(
    directory: epath.PathLike, description: dict[str, Any], names: Sequence[str]
) -> None:
    """Checks that files are the ones that were exported.

    Raises:
        UserError: A file is missing or has changed.
    """
    for name in names:
        path = as_path(directory) / name
        expected = description["files"].get(name, {})
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the directory again")
        if path.stat().length != expected.get("bytes") or sha256_of(path) != expected.get("sha256"):
            refuse_placeholder(path, path)
            raise UserError(
                f"{path} is not the file that {DESCRIPTION_FILE} describes, by its size or "
                "SHA-256: copy the directory again"
            )
