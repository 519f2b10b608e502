"""Trees of arrays on disk, of which converted models and training checkpoints consist.

A stored tree is an Orbax checkpoint of nested dicts, whose keys are the paths of the tree's leaves.
So reading it needs only names and shapes, not the optimizer's tuples that the tree contained, and
works on any mesh. In a training checkpoint, `files.json` lists the files; those of a converted
model are listed in its `config.json`.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, PyTree

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.weights.tensors import describe_mismatch, list_names

FILES = "files.json"

# Orbax briefly holds what it reads twice, so trees are read in parts of at least this size.
_PART_BYTES = 2**28
_MOST_PARTS = 16

# Long enough that no run fails because of a slow disk.
_TIMEOUT_SECONDS = 3600

# Seconds between attempts to remove a folder that is still being written to.
_PAUSES = (0.1, 0.3, 1.0, 3.0)

# Orbax writes to this file again at the very end; it is never read.
_LAST = ("_CHECKPOINT_METADATA",)

Leaves = dict[str, Any]


class Damaged(Exception):
    """A stored tree can't be read; the message says why."""


def drop_duplicate_logs() -> None:
    """Permanently stops Orbax from logging, over hundreds of lines, the errors that it raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_duplicate)


def leaves_of(tree: PyTree) -> Leaves:
    """Returns the leaves of any tree by their paths, such as "a/b/c", in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes_of(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of leaves, or of their descriptions, by their paths."""
    return {name: tuple(getattr(leaf, "shape", ())) for name, leaf in leaves.items()}


def make_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns the Orbax handler that reads and writes trees."""
    # Compression would make trained float32 weights 7% smaller, take a third more time, and hold a
    # second copy of everything until the end.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def make_writer(before_whole: Callable[[], None], *items: str) -> ocp.AsyncCheckpointer:
    """Returns a writer for a stored tree, or for a folder of the stored trees in `items`.

    Args:
        before_whole: Called in one process, just before each save is made final.
        *items: Names of the trees in the folder.
    """
    options = ocp.options.AsyncOptions(
        _TIMEOUT_SECONDS,
        post_finalization_callback=before_whole,
        # Otherwise Orbax would wait for minutes for a folder that can't be made.
        create_directories_asynchronously=False,
    )
    handlers: dict[str, Any] = {name: make_handler() for name in items}
    handlers["composite_options"] = ocp.CompositeOptions(async_options=options)
    handler = ocp.CompositeCheckpointHandler(**handlers) if items else make_handler()
    return ocp.AsyncCheckpointer(handler, async_options=options)


def to_save(tree: PyTree[Array]) -> ocp.args.PyTreeSave:
    """Returns a tree as an argument for a writer."""
    return ocp.args.PyTreeSave(_nest(leaves_of(tree)))


def save(path: epath.Path, tree: PyTree[Array]) -> None:
    """Writes a tree, and returns when it is complete."""
    with ocp.Checkpointer(make_handler()) as writer:
        writer.save(path, args=to_save(tree))


def list_files(path: epath.Path) -> None:
    """Writes `files.json`; call it when all other files of a stored tree are there."""
    sizes = sizes_in(path)
    files.write_json(path / FILES, {name: sizes[name] for name in sizes if name not in _LAST})


def described(path: epath.Path) -> Leaves:
    """Returns a stored tree's description of its leaves: objects with `shape` and `dtype`.

    Raises:
        Damaged: There is no complete tree.
    """
    try:
        with contextlib.closing(make_handler()) as handler:
            return leaves_of(handler.metadata(path).tree)
    except Exception as error:  # Orbax raises whatever its parsers raise
        raise Damaged(f"{path.name}: {reason(error)}") from error


def misfit(path: epath.Path, abstract: PyTree) -> str:
    """Says how the leaves stored at `path` differ from those of `abstract`; "" if they don't.

    Raises:
        Damaged: Files are missing or truncated.
    """
    _check_files(path)
    wanted, stored = leaves_of(abstract), described(path)
    other = [
        f"{name} is {np.dtype(stored[name].dtype)} instead of {np.dtype(leaf.dtype)}"
        for name, leaf in wanted.items()
        if name in stored and np.dtype(stored[name].dtype) != np.dtype(leaf.dtype)
    ]
    kinds = [describe_mismatch(shapes_of(wanted), shapes_of(stored))]
    if other:
        kinds.append(f"{len(other)} of another type: {list_names(other)}")
    return "; ".join(kinds).removeprefix("; ")


def read(path: epath.Path, abstract: PyTree) -> Any:
    """Reads a stored tree that has the leaves of `abstract`, one part after another.

    Args:
        path: The stored tree.
        abstract: The tree of `jax.ShapeDtypeStruct`, with shardings.

    Raises:
        Damaged: Arrays can't be read.
    """
    found: Leaves = {}
    wanted = leaves_of(abstract)
    with ocp.Checkpointer(make_handler()) as reader:
        for part in _parts(wanted):
            tree = _nest(part)
            arguments = ocp.args.PyTreeRestore(
                tree,
                restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            )
            try:
                found |= leaves_of(reader.restore(path, args=arguments))
            except jax.errors.JaxRuntimeError:  # such as a device that is out of memory
                raise
            except Exception as error:  # which Orbax raises for unreadable arrays
                raise Damaged(f"{path.name}: {reason(error)}") from error
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])


def sizes_in(directory: epath.Path, prefix: str = "") -> dict[str, int]:
    """Returns the size of every file below a directory, by relative path."""
    sizes = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            sizes |= sizes_in(path, f"{prefix}{path.name}/")
        else:
            sizes[prefix + path.name] = path.stat().length
    return sizes


def is_whole(path: epath.Path) -> bool:
    """Returns whether the stored tree, or folder of trees, at `path` was finished."""
    return ocp.path.step.is_path_finalized(path)


def final_name(path: epath.Path) -> str:
    """Returns the name that an unfinished folder at `path` will get when it is complete."""
    return path.name.partition(ocp.path.step.TMP_DIR_SUFFIX)[0]


def unfinished_path(path: epath.Path) -> epath.Path:
    """Returns where Orbax writes a folder before it is complete and moves to `path`."""
    return path if _is_remote(path) else path.with_name(path.name + ocp.path.step.TMP_DIR_SUFFIX)


def remove(path: epath.Path) -> None:
    """Removes a complete folder; if that is interrupted, the rest counts as unfinished."""
    if _is_remote(path):
        (path / ocp.path.atomicity.COMMIT_SUCCESS_FILE).unlink(missing_ok=True)
    else:
        path = path.rename(unfinished_path(path))
    path.rmtree(missing_ok=True)


def remove_unfinished(path: epath.Path) -> None:
    """Removes an unfinished folder, even if a failed save is still writing to it.

    Raises:
        OSError: It can't be removed, or something keeps writing to it for seconds.
    """
    for seconds in _PAUSES:
        with contextlib.suppress(OSError):
            return path.rmtree(missing_ok=True)
        time.sleep(seconds)
    path.rmtree(missing_ok=True)


def scan(directory: epath.Path) -> tuple[list[int], list[epath.Path]]:
    """Returns the complete steps in a folder, in order, and the folders of unfinished ones.

    Raises:
        UserError: The folder can't be read.
    """
    steps, unfinished = [], []
    try:
        for path in directory.iterdir() if directory.is_dir() else ():
            if not re.fullmatch("0|[1-9][0-9]*", final_name(path)):
                continue
            if is_whole(path):
                steps.append(int(path.name))
            else:
                unfinished.append(path)
    except OSError as error:
        raise UserError(f"{directory} can't be read: {reason(error)}") from error
    return sorted(steps), sorted(unfinished)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns an absolute path, which Orbax needs."""
    place = files.as_path(path)
    return place if _is_remote(place) else epath.Path(os.path.abspath(place))


def reason(error: BaseException) -> str:
    """Returns an error as one line: the system's words if any, else the message's beginning."""
    words = " ".join(str(error).split())
    if match := re.search(r"os_error_code='(\d+)'", words):
        return os.strerror(int(match[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (words if len(words) < 200 else f"{words[:200]}...") or type(error).__name__


def _check_files(path: epath.Path) -> None:
    """Raises `Damaged` unless all files listed in `files.json` are there."""
    # TensorStore would notice too, but only while reading, and with pages of messages.
    try:
        listed, here = json.loads(files.read_bytes(path / FILES)), sizes_in(path)
    except (UserError, ValueError, OSError) as error:
        raise Damaged(f"{path.name}/{FILES} is missing or broken") from error
    for name, size in listed.items():
        if here.get(name) != size:
            state = "truncated or changed" if name in here else "missing"
            raise Damaged(f"{path.name}/{name} is {state}")


def _is_no_duplicate(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":  # if one write fails, the others are abandoned
        return "OCDBT" not in record.getMessage()
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def _nest(leaves: Leaves) -> dict[str, Any]:
    """Returns nested dicts of leaves by their paths."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree


def _parts(leaves: Leaves) -> Iterator[Leaves]:
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in leaves.items()}
    enough = max(_PART_BYTES, sum(sizes.values()) // _MOST_PARTS)
    part: Leaves = {}
    for name, leaf in leaves.items():
        part[name] = leaf
        if sum(sizes[name] for name in part) >= enough:
            yield part
            part = {}
    if part:
        yield part


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)
