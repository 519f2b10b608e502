"""Trees of arrays in Orbax checkpoints, and the directories of converted models.

A converted model is a directory of

- `config.json`: its config, and where it comes from;
- `params/SECTION/`: an Orbax checkpoint of each network's parameters;
- `carried.safetensors`: what a release file holds besides, for an export; may be absent.
"""

import contextlib
import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.config import config_from_json, config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path, read_bytes, utf8_path, write_json
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder
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

# What people take for converted models is told apart, and this is said.
_RELEASE = "give a file of the release's own names, as model.ckpt of Doubiiu/DynamiCrafter_512"

# Orbax holds what it reads twice for a while, so a tree is restored in parts of about this size.
_PART_BYTES = 2**28


def save_tree(directory: epath.PathLike, tree: PyTree[Array]) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, and returns when it is there.

    Args:
        directory: Where to; it must not exist.
        tree: Nested dicts of `jax.Array`.
    """
    # Compression would save 7% of trained float32 weights, take several times as long, and hold
    # a second copy of everything until the end.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    as_path(directory).parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(_absolute(directory), args=ocp.args.PyTreeSave(tree))


def restore_tree(
    directory: epath.PathLike,
    abstract: Mapping[str, PyTree],
    *,
    dtype: DTypeLike | None = None,
    shardings: Mapping[str, PyTree] | None = None,
) -> dict[str, PyTree[Array]]:
    """Reads a checkpoint of `save_tree`, complete or not at all.

    Args:
        directory: The checkpoint.
        abstract: The same tree with `jax.ShapeDtypeStruct` for leaves.
        dtype: Type of the result; by default that of `abstract`.
        shardings: The same tree of `jax.sharding.Sharding`; by default all goes to one device.

    Raises:
        UserError: If the checkpoint is absent or broken, or its leaves are not those of
            `abstract`; the message lists them.
    """
    return dict(restore_children(directory, abstract, dtype=dtype, shardings=shardings))


def restore_children(
    directory: epath.PathLike,
    abstract: Mapping[str, PyTree],
    *,
    dtype: DTypeLike | None = None,
    shardings: Mapping[str, PyTree] | None = None,
) -> Iterator[tuple[str, PyTree[Array]]]:
    """Yields the children of the tree one by one, reading a few at a time; see `restore_tree`."""
    path = _absolute(directory)
    wanted = _find_tree(path, abstract, dtype, shardings)
    for part in _parts(wanted):
        yield from _restore_part(path, part).items()


def open_tree(
    directory: epath.PathLike, abstract: Mapping[str, PyTree], *, dtype: DTypeLike | None = None
) -> Callable[[tuple[str, ...]], Array]:
    """Returns a function that reads one leaf of a checkpoint onto one device, by its path.

    It reads the child of the tree that the leaf is in, and keeps it until a leaf of another is
    asked for; so neighbours should be read one after another.

    Args:
        directory: The checkpoint.
        abstract: As in `restore_tree`.
        dtype: As in `restore_tree`.

    Raises:
        UserError: As in `restore_tree`.
    """
    path = _absolute(directory)
    wanted = _find_tree(path, abstract, dtype, None)

    @functools.lru_cache(maxsize=1)
    def child(name: str) -> PyTree[Array]:
        return _restore_part(path, {name: wanted[name]})[name]

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
        abstract: The sections wanted, as trees of `jax.ShapeDtypeStruct`.
        dtype: Type of the result; by default that of `abstract`.
        shardings: Where each parameter goes; by default all to one device.

    Raises:
        UserError: If a section is absent or broken, or does not fit.
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
        "files": _list_files(path),
        "config": config_to_json(config),
    }
    write_json(path / CONFIG_FILE, description)


def section_path(directory: epath.PathLike, section: str) -> epath.Path:
    """Returns where a converted model keeps the parameters of a network."""
    return as_path(directory) / PARAMS_FOLDER / section


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Returns what `config.json` of a converted model says.

    That is `format_version`, `package_version`, `dtype` of the parameters, `sources` (a list of
    `name` and `sha256` of the files it was made from; of a training run also `step` and
    `parameters`, "averaged" or "last", and its SHA-256 is that of the parameters), `files` (their
    sizes by name) and `config`.

    Raises:
        UserError: If the directory is not a converted model or of a newer format, or if a file
            of it is missing or cut short.
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
            f"{directory} has format version {version}, newer than this package reads "
            f"({FORMAT_VERSION}): upgrade dynamicrafter-jax"
        )
    if not {"dtype", "sources", "files", "config"} <= set(description):
        raise UserError(f"{path / CONFIG_FILE} is damaged: convert the model again")
    for name, size in description["files"].items():
        file = path / name
        if not file.exists() or file.stat().length != size:
            refuse_placeholder(file, file)
            state = "cut short or changed" if file.exists() else "missing"
            raise UserError(f"{file} is {state}: copy {directory} or convert the model again")
    return description


def read_config(directory: epath.PathLike) -> ConfigDict:
    """Returns the config of a converted model; raises as `read_description`."""
    return config_from_json(read_description(directory)["config"])


@contextlib.contextmanager
def open_carried(directory: epath.PathLike) -> Iterator[dict[str, StoredTensor]]:
    """Opens the tensors that a converted model carries for an export; there may be none."""
    path = as_path(directory) / CARRIED_FILE
    if not path.exists():
        yield {}
        return
    with open_tensors(path) as tensors:
        yield tensors


def _describe_foreign(folder: epath.Path) -> str:
    """Says what a folder is that is no converted model; nothing if it may be a damaged one."""
    described = _read_json(folder / CONFIG_FILE)
    if (folder / "checkpoints").is_dir():
        return (
            f"{folder} is a training run: make a model of it by python -m "
            f"dynamicrafter_jax.convert --input={folder} --output=DIRECTORY"
        )
    if "train" in described:
        return f"{folder} is a training run that has no checkpoint yet: let it train on"
    if (folder / "model_index.json").exists() or "_diffusers_version" in described:
        return f"{folder} is a diffusers folder, which names its tensors in another way: {_RELEASE}"
    if "model_type" in described or "architectures" in described:
        return f"{folder} is a transformers folder, which holds other networks: {_RELEASE}"
    if (folder / CONFIG_FILE).exists():
        return ""
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(EXTENSIONS))
    if files:
        return f"{folder} is no converted model: give the path of a file in it, as {files[0]}"
    return f"{folder} is no converted model: it has no {CONFIG_FILE}"


def _read_json(file: epath.Path) -> dict[str, Any]:
    """Returns what a JSON file says; nothing where there is none, or something else in it."""
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


def _list_files(directory: epath.Path, prefix: str = "") -> dict[str, int]:
    """Returns the size of every file below a directory, by relative path."""
    sizes = {}
    for child in sorted(directory.iterdir()):
        name = prefix + child.name
        if child.is_dir():
            sizes |= _list_files(child, f"{name}/")
        else:
            sizes[name] = child.stat().length
    return sizes


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths, and none that are not UTF-8."""
    place = as_path(path)
    return place if "://" in os.fspath(place) else utf8_path(os.path.abspath(place))


def _reason(error: Exception) -> str:
    """The beginning of what Orbax says, which may go on for pages."""
    words = " ".join(str(error).split())
    return words if len(words) < 200 else f"{words[:200]}..."


def _find_tree(
    path: epath.Path,
    abstract: Mapping[str, PyTree],
    dtype: DTypeLike | None,
    shardings: Mapping[str, PyTree] | None,
) -> dict[str, PyTree]:
    """Makes sure that a checkpoint has the leaves of `abstract`; returns them as asked for."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted: dict[str, PyTree] = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(leaf.dtype if dtype is None else dtype), sharding=sharding
        ),
        abstract,
        jax.tree.map(lambda _: one_device, abstract) if shardings is None else shardings,
    )
    try:
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            stored = handler.metadata(path).tree
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no whole checkpoint: {_reason(error)}") from error
    if mismatch := describe_mismatch(_shapes(wanted), _shapes(stored)):
        details = describe_mismatch(_shapes(wanted), _shapes(stored), most=None)
        raise UserError(f"the parameters in {path} do not fit the config: {mismatch}", details)
    return wanted


def _restore_part(path: epath.Path, part: dict[str, PyTree]) -> dict[str, PyTree[Array]]:
    """Reads some children of a tree."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(part)
    arguments = ocp.args.PyTreeRestore(part, restore_args=restore_args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path, args=arguments)
        except jax.errors.JaxRuntimeError:  # such as a device without room
            raise
        except Exception as error:  # which Orbax raises for unreadable arrays
            raise UserError(f"{path} is damaged: {_reason(error)}") from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its path, as "a/b/c"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(getattr(leaf, "shape", ()))
        for path, leaf in leaves
    }


def _parts(tree: Mapping[str, PyTree]) -> Iterator[dict[str, PyTree]]:
    """Splits a tree by its children, in order, into parts of some size."""
    part, size = {}, 0
    for name, child in tree.items():
        part[name] = child
        leaves = jax.tree.leaves(child)
        size += sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        if size >= _PART_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part
