"""Trees of arrays on disk: what converted models and the checkpoints of runs are made of.

A stored tree is an Orbax checkpoint of nested dicts, named by the paths of the tree's leaves. So it
is read by names and shapes alone, whatever optimizer's tuples the tree was made of, and onto any
mesh. In a run's checkpoint `files.json` lists its files; those of a converted model are listed in
its `config.json`.
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

# Orbax holds what it reads twice for a while, so trees are read in parts of at least this size.
_PART_BYTES = 2**28
_MOST_PARTS = 16

# The slowest disk that a lab would use must not fail a run.
_TIMEOUT_SECONDS = 3600

# Between attempts to remove a folder that something still writes into.
_PAUSES = (0.1, 0.3, 1.0, 3.0)

# Orbax writes into this once more when all is done; nothing is read of it.
_LAST = ("_CHECKPOINT_METADATA",)

Leaves = dict[str, Any]


class Damaged(Exception):
    """A stored tree can't be read; the message says why."""


def drop_duplicate_logs() -> None:
    """Makes Orbax not log, over hundreds of lines, what it raises too; for good."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_duplicate)


def leaves_of(tree: PyTree) -> Leaves:
    """Returns the leaves of any tree by their paths, as "a/b/c", in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes_of(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of leaves, or of what is stored of them, by their paths."""
    return {name: tuple(getattr(leaf, "shape", ())) for name, leaf in leaves.items()}


def make_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what reads and writes a tree."""
    # Compression would save 7% of trained float32 weights, take a third more time, and hold a
    # second copy of everything until the end.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def make_writer(before_whole: Callable[[], None], *items: str) -> ocp.AsyncCheckpointer:
    """Returns a writer of a stored tree, or of a folder of those that `items` names.

    Args:
        before_whole: Called in one process, as the last act but one of each save.
        *items: Names in the folder.
    """
    options = ocp.options.AsyncOptions(
        _TIMEOUT_SECONDS,
        post_finalization_callback=before_whole,
        # Else a folder that can't be made is waited for, for minutes.
        create_directories_asynchronously=False,
    )
    handlers: dict[str, Any] = {name: make_handler() for name in items}
    handlers["composite_options"] = ocp.CompositeOptions(async_options=options)
    handler = ocp.CompositeCheckpointHandler(**handlers) if items else make_handler()
    return ocp.AsyncCheckpointer(handler, async_options=options)


def to_save(tree: PyTree[Array]) -> ocp.args.PyTreeSave:
    """Returns a tree as an argument of a writer."""
    return ocp.args.PyTreeSave(_nest(leaves_of(tree)))


def save(path: epath.Path, tree: PyTree[Array]) -> None:
    """Writes a tree, and returns when it is there."""
    with ocp.Checkpointer(make_handler()) as writer:
        writer.save(path, args=to_save(tree))


def list_files(path: epath.Path) -> None:
    """Writes `files.json`, when all other files of a stored tree are there."""
    sizes = sizes_in(path)
    files.write_json(path / FILES, {name: sizes[name] for name in sizes if name not in _LAST})


def described(path: epath.Path) -> Leaves:
    """Returns what a stored tree says of its leaves: objects with `shape` and `dtype`.

    Raises:
        Damaged: If there is no whole one.
    """
    try:
        with contextlib.closing(make_handler()) as handler:
            return leaves_of(handler.metadata(path).tree)
    except Exception as error:  # Orbax raises what its parsers do
        raise Damaged(f"{path.name}: {reason(error)}") from error


def misfit(path: epath.Path, abstract: PyTree) -> str:
    """Says in what the leaves stored at `path` differ from those of `abstract`; "" if in nothing.

    Raises:
        Damaged: If files are missing or cut short.
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
    """Reads a stored tree that has the leaves of `abstract`, a part of it after the other.

    Args:
        path: The stored tree.
        abstract: The tree of `jax.ShapeDtypeStruct`, with shardings.

    Raises:
        Damaged: If arrays can't be read.
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
            except jax.errors.JaxRuntimeError:  # such as a device without room
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
    """Whether what is at `path` was finished: a stored tree, or a folder of some."""
    return ocp.path.step.is_path_finalized(path)


def final_name(path: epath.Path) -> str:
    """Returns the name that what is written at `path` has when it is whole."""
    return path.name.partition(ocp.path.step.TMP_DIR_SUFFIX)[0]


def unfinished_path(path: epath.Path) -> epath.Path:
    """Returns where Orbax writes what will be whole at `path`."""
    return path if _is_remote(path) else path.with_name(path.name + ocp.path.step.TMP_DIR_SUFFIX)


def remove(path: epath.Path) -> None:
    """Removes what is whole; if that is cut short, what is left is not."""
    if _is_remote(path):
        (path / ocp.path.atomicity.COMMIT_SUCCESS_FILE).unlink(missing_ok=True)
    else:
        path = path.rename(unfinished_path(path))
    path.rmtree(missing_ok=True)


def remove_unfinished(path: epath.Path) -> None:
    """Removes what was never finished, though a save that failed may still be writing into it.

    Raises:
        OSError: If it can't be removed, or is written into for seconds.
    """
    for seconds in _PAUSES:
        with contextlib.suppress(OSError):
            return path.rmtree(missing_ok=True)
        time.sleep(seconds)
    path.rmtree(missing_ok=True)


def scan(directory: epath.Path) -> tuple[list[int], list[epath.Path]]:
    """Returns the whole steps in a folder of them, in order, and the folders of unfinished ones.

    Raises:
        UserError: If the folder can't be read.
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
    """Returns a path that Orbax takes: not a relative one."""
    place = files.as_path(path)
    return place if _is_remote(place) else epath.Path(os.path.abspath(place))


def reason(error: BaseException) -> str:
    """One line: the system's own words if there are any, else how the message begins."""
    words = " ".join(str(error).split())
    if match := re.search(r"os_error_code='(\d+)'", words):
        return os.strerror(int(match[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (words if len(words) < 200 else f"{words[:200]}...") or type(error).__name__


def _check_files(path: epath.Path) -> None:
    """Raises `Damaged` unless all files are there that `files.json` lists."""
    # TensorStore would notice too, but only while it reads, and with pages of complaints.
    try:
        listed, here = json.loads(files.read_bytes(path / FILES)), sizes_in(path)
    except (UserError, ValueError, OSError) as error:
        raise Damaged(f"{path.name}/{FILES} is missing or broken") from error
    for name, size in listed.items():
        if here.get(name) != size:
            state = "cut short or changed" if name in here else "missing"
            raise Damaged(f"{path.name}/{name} is {state}")


def _is_no_duplicate(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":  # one write fails, and the others are given up
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
