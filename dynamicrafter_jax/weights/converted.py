"""The directories of converted models.

A converted model is a directory with

- `config.json`: its config, and which files it was made from;
- `params/SECTION/`: the parameters of each network, as a stored tree;
- `carried.safetensors`: further tensors of the release file, for an export; may be absent.
"""

import contextlib
import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.config import config_from_json, config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path, read_bytes, utf8_path, write_json
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder
from dynamicrafter_jax.weights import stored
from dynamicrafter_jax.weights.tensors import (
    EXTENSIONS,
    StoredTensor,
    describe_mismatch,
    open_tensors,
)

CONFIG_FILE = "config.json"
PARAMS_FOLDER = "params"
CARRIED_FILE = "carried.safetensors"
FORMAT_VERSION = 1

# The advice for folders that are mistaken for converted models.
_RELEASE = "give a file with the release's names, such as model.ckpt of Doubiiu/DynamiCrafter_512"


def save_tree(directory: epath.PathLike, tree: PyTree[Array]) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, and returns when it is complete.

    Args:
        directory: Where to write it; must not exist yet.
        tree: Nested dicts of `jax.Array`.
    """
    as_path(directory).parent.mkdir(parents=True, exist_ok=True)
    stored.save(_utf8(directory), tree)


def restore_tree(
    directory: epath.PathLike,
    abstract: Mapping[str, PyTree],
    *,
    dtype: DTypeLike | None = None,
    shardings: Mapping[str, PyTree] | None = None,
) -> dict[str, PyTree[Array]]:
    """Reads a checkpoint written by `save_tree`, complete or not at all.

    Args:
        directory: The checkpoint.
        abstract: The same tree, with `jax.ShapeDtypeStruct` as leaves.
        dtype: Type of the result; by default that of `abstract`.
        shardings: The same tree of `jax.sharding.Sharding`; by default, one device gets everything.

    Raises:
        UserError: The checkpoint is absent or broken, or its leaves are not those of
            `abstract`; the message lists them.
    """
    path = _utf8(directory)
    return _read(path, _find_tree(path, abstract, dtype, shardings))


def open_tree(
    directory: epath.PathLike, abstract: Mapping[str, PyTree], *, dtype: DTypeLike | None = None
) -> Callable[[tuple[str, ...]], Array]:
    """Returns a function that reads one leaf of a checkpoint onto one device, by its path.

    The function reads the tree's child that contains the leaf, and keeps it until a leaf of another
    child is requested, so read neighbouring leaves one after another.

    Args:
        directory: The checkpoint.
        abstract: As in `restore_tree`.
        dtype: As in `restore_tree`.

    Raises:
        UserError: As in `restore_tree`.
    """
    path = _utf8(directory)
    wanted = _find_tree(path, abstract, dtype, None)

    @functools.lru_cache(maxsize=1)
    def child(name: str) -> PyTree[Array]:
        return _read(path, {name: wanted[name]})[name]

    def leaf(place: tuple[str, ...]) -> Array:
        return functools.reduce(lambda tree, key: tree[key], place[1:], child(place[0]))

    return leaf


def load_converted(
    directory: epath.PathLike,
    abstract: Mapping[str, Mapping[str, PyTree]],
    *,
    dtype: DTypeLike | None = None,
    shardings: Mapping[str, Mapping[str, PyTree]] | None = None,
) -> dict[str, PyTree[Array]]:
    """Reads the parameters of a converted model.

    Args:
        directory: The converted model.
        abstract: The sections to read, as trees of `jax.ShapeDtypeStruct`.
        dtype: Type of the result; by default that of `abstract`.
        shardings: Where each parameter goes; by default, one device gets everything.

    Raises:
        UserError: A section is absent or broken, or does not fit.
    """
    return {
        section: restore_tree(
            section_path(directory, section),
            tree,
            dtype=dtype,
            shardings=None if shardings is None else shardings[section],
        )
        for section, tree in abstract.items()
    }


def write_description(
    directory: epath.PathLike, config: ConfigDict, sources: list[dict[str, Any]]
) -> None:
    """Writes `config.json`, the last file of a converted model; see `read_description`."""
    path = as_path(directory)
    description = {
        "format_version": FORMAT_VERSION,
        "package_version": _package_version(),
        "dtype": config.precision.param_dtype,
        "sources": sources,
        "files": stored.sizes_in(path),
        "config": config_to_json(config),
    }
    write_json(path / CONFIG_FILE, description)


def section_path(directory: epath.PathLike, section: str) -> epath.Path:
    """Returns where a converted model keeps the parameters of a network."""
    return as_path(directory) / PARAMS_FOLDER / section


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Returns the contents of a converted model's `config.json`.

    They are `format_version`, `package_version`, `dtype` of the parameters, `sources` (a list of
    `name` and `sha256` of the files it was made from; a training run also has `step` and
    `parameters`, "averaged" or "last", and its SHA-256 is that of the parameters), `files` (their
    sizes by name) and `config`.

    Raises:
        UserError: The directory is not a converted model or has a newer format, or one of its files
            is missing or truncated.
    """
    path = as_path(directory)
    if not path.is_dir():
        raise UserError(f"{directory} is not a directory: give the path of a converted model")
    if foreign := _describe_foreign(path):
        raise UserError(foreign)
    try:
        description = json.loads(read_bytes(path / CONFIG_FILE))
        version = int(description["format_version"])
    except UserError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        refuse_placeholder(path / CONFIG_FILE, path / CONFIG_FILE)
        raise UserError(f"{path / CONFIG_FILE} is damaged: convert the model again") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{directory} has format version {version}, newer than this package can read "
            f"({FORMAT_VERSION}): upgrade dynamicrafter-jax"
        )
    if not {"dtype", "sources", "files", "config"} <= set(description):
        raise UserError(f"{path / CONFIG_FILE} is damaged: convert the model again")
    for name, size in description["files"].items():
        file = path / name
        if not file.exists() or file.stat().length != size:
            refuse_placeholder(file, file)
            state = "truncated or changed" if file.exists() else "missing"
            raise UserError(f"{file} is {state}: copy {directory} or convert the model again")
    return description


def read_config(directory: epath.PathLike) -> ConfigDict:
    """Returns the config of a converted model; raises the errors of `read_description`."""
    return config_from_json(read_description(directory)["config"])


@contextlib.contextmanager
def open_carried(directory: epath.PathLike) -> Iterator[dict[str, StoredTensor]]:
    """Opens the tensors that a converted model keeps for an export; there may be none."""
    path = as_path(directory) / CARRIED_FILE
    if not path.exists():
        yield {}
        return
    with open_tensors(path) as tensors:
        yield tensors


def _describe_foreign(folder: epath.Path) -> str:
    """Describes a folder that is not a converted model; "" if it may be a damaged one."""
    described = _read_json(folder / CONFIG_FILE)
    if (folder / "checkpoints").is_dir():
        return (
            f"{folder} is a training run: convert it to a model with python -m "
            f"dynamicrafter_jax.convert --input={folder} --output=DIRECTORY"
        )
    if "train" in described:
        return f"{folder} is a training run that has no checkpoint yet: let it train longer"
    if (folder / "model_index.json").exists() or "_diffusers_version" in described:
        return f"{folder} is a diffusers folder, whose tensors have other names: {_RELEASE}"
    if "model_type" in described or "architectures" in described:
        return f"{folder} is a transformers folder, which holds other networks: {_RELEASE}"
    if (folder / CONFIG_FILE).exists():
        return ""
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(EXTENSIONS))
    if files:
        return (
            f"{folder} is not a converted model: give the path of a file in it, such as {files[0]}"
        )
    return f"{folder} is not a converted model: it has no {CONFIG_FILE}"


def _read_json(file: epath.Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if the file is missing or holds something else."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _package_version() -> str:
    try:
        return importlib.metadata.version("dynamicrafter-jax")
    except importlib.metadata.PackageNotFoundError:  # run from a clone
        return "unknown"


def _utf8(path: epath.PathLike) -> epath.Path:
    """Returns a path that Orbax accepts: absolute, and in UTF-8."""
    return utf8_path(stored.absolute(path))


def _find_tree(
    path: epath.Path,
    abstract: Mapping[str, PyTree],
    dtype: DTypeLike | None,
    shardings: Mapping[str, PyTree] | None,
) -> dict[str, PyTree]:
    """Checks that a checkpoint has the leaves of `abstract`; returns those to read."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted: dict[str, PyTree] = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(leaf.dtype if dtype is None else dtype), sharding=sharding
        ),
        abstract,
        jax.tree.map(lambda _: one_device, abstract) if shardings is None else shardings,
    )
    try:
        here = stored.shapes_of(stored.described(path))
    except stored.Damaged as error:
        raise UserError(f"{path} is not a complete checkpoint ({error})") from error
    shapes = stored.shapes_of(stored.leaves_of(wanted))
    if mismatch := describe_mismatch(shapes, here):
        details = describe_mismatch(shapes, here, most=None)
        raise UserError(f"the parameters in {path} do not fit the config: {mismatch}", details)
    return wanted


def _read(path: epath.Path, wanted: dict[str, PyTree]) -> dict[str, PyTree[Array]]:
    """Reads some children of a tree."""
    try:
        return stored.read(path, wanted)
    except stored.Damaged as error:
        raise UserError(f"{path} is damaged ({error})") from error
