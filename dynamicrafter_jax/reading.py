"""Networks in files and in converted models: found complete, then read leaf by leaf."""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import checkpoint
from dynamicrafter_jax.config import DTYPES, load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.files import as_path
from dynamicrafter_jax.quiet import DEBUG
from dynamicrafter_jax.recognition import article, in_words, is_like, models_like
from dynamicrafter_jax.release import (
    ALIASES,
    FROZEN_SECTIONS,
    PREFIXES,
    ReleaseTensor,
    release_tensors,
    schedule_buffers,
    unused_tensors,
)
from dynamicrafter_jax.tensors import (
    StoredTensor,
    describe_mismatch,
    open_tensors,
    rename_tensors,
)

# Buffers of a release file that tell which config it was trained with, and how far a file in
# half precision may be from the exact values.
_TELLING_BUFFERS = ("alphas_cumprod", "scale_arr")
_BUFFER_TOLERANCE = 5e-3

Tensors = Mapping[str, StoredTensor]
Sections = Mapping[str, Mapping[str, ReleaseTensor]]
Leaf = Callable[[], Array | np.ndarray]
Leaves = Mapping[tuple[str, ...], Leaf]


@dataclass(frozen=True)
class Release:
    """Networks in a file or a converted model, found complete, and still to be read.

    Attributes:
        leaves: For each network, a function for each path in its tree that reads the parameter
            there. They work while the file is open.
        carried: The tensors that the model does not use and an export needs.
        sources: The file, and what the towers come from if they are not in it.
    """

    leaves: Mapping[str, Leaves]
    carried: Tensors
    sources: tuple[epath.PathLike, ...]

    @property
    def readers(self) -> dict[str, Callable[[], PyTree[Array]]]:
        """For each network, a function that reads all its parameters onto one device."""
        return {section: partial(_read_tree, leaves) for section, leaves in self.leaves.items()}

    def join(self, other: "Release") -> "Release":
        """Returns both, `other` winning where both have a network, `self` where both carry."""
        return Release(
            {**self.leaves, **other.leaves},
            {**other.carried, **self.carried},
            self.sources + other.sources,
        )


def open_canonical(path: epath.PathLike, stack: contextlib.ExitStack) -> dict[str, StoredTensor]:
    """Opens a release file until `stack` closes, older names replaced by today's."""

    def today(name: str) -> str:
        for old, new in ALIASES:
            name = name.replace(old, new)
        return name

    return rename_tensors(stack.enter_context(open_tensors(path)), today, path)


def pick_networks(
    path: epath.PathLike,
    tensors: Tensors,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    *,
    may_lack: Collection[str] = FROZEN_SECTIONS,
    may_start_fresh: Collection[str] = (),
) -> Release:
    """Returns the networks of `boxed` that an open file has, each complete.

    Args:
        path: The file, for messages.
        tensors: What is in it, by today's names. Those of networks not in `boxed` are ignored.
        boxed: Abstract parameters of the networks wanted.
        config: The config of the model.
        may_lack: Networks that may be absent, and are then absent from the result.
        may_start_fresh: Regular expressions of names. Parameters that match one may be absent,
            but only all of them together; they are then absent from the result.

    Raises:
        UserError: If a tensor is missing, unexpected, misshapen or of integers.
    """
    sections = _sections(boxed)
    absent = {
        key
        for name in may_lack
        for key in sections.get(name, ())
        if not any(key in tensors for key in sections[name])
    }
    for pattern in may_start_fresh:
        group = {
            key for section in sections.values() for key in section if re.fullmatch(pattern, key)
        }
        absent |= set() if any(key in tensors for key in group) else group
    present = {
        name: {key: place for key, place in section.items() if key not in absent}
        for name, section in sections.items()
    }
    present = {name: section for name, section in present.items() if section}
    ignored = set(unused_tensors(config.text_encoder.layers))
    others = tuple(f"{prefix}." for name, prefix in PREFIXES.items() if name not in boxed)
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in ignored and not name.startswith(others)
    }
    check_complete(path, config, _shapes(present), used, release=True)
    return as_release(path, tensors, present, config)


def open_towers(
    towers: epath.PathLike,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> Release:
    """Opens the networks of `boxed`, and no others, in a release file or a converted model.

    Raises:
        UserError: If one is not there, broken or not complete.
    """
    if as_path(towers).is_dir():
        return open_converted(towers, boxed, config, stack)
    tensors = open_canonical(towers, stack)
    sections = _sections(boxed)
    shapes = _shapes(sections)
    used = {name: tensor for name, tensor in tensors.items() if name in shapes}
    check_complete(towers, config, shapes, used)
    return as_release(towers, tensors, sections, config)


def open_converted(
    directory: epath.PathLike,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> Release:
    """Opens the networks of `boxed` in a converted model.

    Raises:
        UserError: If the model is broken, or a network of it does not fit.
    """
    checkpoint.read_description(directory)
    leaves: dict[str, Leaves] = {}
    for section, tree in boxed.items():
        abstract = nn.meta.unbox(tree)
        read = checkpoint.open_tree(
            checkpoint.section_path(directory, section),
            abstract,
            dtype=DTYPES[config.precision.param_dtype],
        )
        paths = traverse_util.flatten_dict(abstract)
        leaves[section] = {path: partial(read, path) for path in paths}
    carried = stack.enter_context(checkpoint.open_carried(directory))
    return Release(leaves, carried, (directory,))


def as_release(
    path: epath.PathLike, tensors: Tensors, sections: Sections, config: ConfigDict
) -> Release:
    """Returns the networks of `sections` out of an open file, and what it carries."""
    unused = unused_tensors(config.text_encoder.layers)
    read = partial(_read_leaf, path, DTYPES[config.precision.param_dtype])
    leaves = {
        section: {
            place.path[1:]: partial(read, place, tensors[name]) for name, place in places.items()
        }
        for section, places in sections.items()
    }
    carried = {name: t for name, t in tensors.items() if unused.get(name) == "carried"}
    return Release(leaves, carried, (path,))


def check_complete(
    path: epath.PathLike,
    config: ConfigDict,
    wanted: Mapping[str, tuple[int, ...]],
    found: Tensors,
    *,
    release: bool = False,
) -> None:
    """Makes sure that a file has exactly the tensors wanted, given as shapes by name.

    Args:
        path: The file, for messages.
        config: The config of the model.
        wanted: Shapes by name.
        found: What is in the file, and matters.
        release: Whether it is a release file, of which can be said which model it looks like.

    Raises:
        UserError: If one is missing, unexpected, misshapen or of integers.
    """
    shapes = {name: tensor.shape for name, tensor in found.items()}
    if mismatch := describe_mismatch(wanted, shapes):
        meaning = f"does not fit the config {config.name}"
        if release and not is_like(shapes, config) and (others := models_like(shapes)):
            meaning = f"is not {article(config.name)} {config.name} model: it looks like "
            meaning += in_words(others)
        details = describe_mismatch(wanted, shapes, most=None)
        more = "" if details == mismatch else f" ({DEBUG}=1 lists all)"
        raise UserError(f"{path} {meaning}: {mismatch}{more}", details)
    for name, tensor in found.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{path} is no model: {name} holds {tensor.dtype}, not weights")


def describe_schedule(path: epath.PathLike, config: ConfigDict, found: Tensors) -> str:
    """Says if a file was made for another noise schedule, by its buffers; nothing if not."""
    differing = _differing_buffer(config, found)
    if not differing:
        return ""
    shapes = {name: tensor.shape for name, tensor in found.items()}
    others = [
        name for name in models_like(shapes) if not _differing_buffer(load_config(name), found)
    ]
    looks_like = f"; it looks like {in_words(others)}" if others else ""
    return (
        f"{path} was made for another noise schedule than the config {config.name} describes "
        f"(its {differing} differs){looks_like}"
    )


def _differing_buffer(config: ConfigDict, found: Tensors) -> str | None:
    """Names a buffer of a file that is not that of a config."""
    buffers = schedule_buffers(config.diffusion.to_dict())
    for name in _TELLING_BUFFERS:
        if name not in found:
            continue
        ours, theirs = buffers.get(name, np.zeros(0)), found[name].read().astype(np.float32)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=_BUFFER_TOLERANCE):
            return name
    return None


def _sections(boxed: Mapping[str, PyTree]) -> Sections:
    return {name: release_tensors({name: tree}) for name, tree in boxed.items()}


def _shapes(sections: Sections) -> dict[str, tuple[int, ...]]:
    return {name: t.shape for section in sections.values() for name, t in section.items()}


def _read_leaf(
    path: epath.PathLike, dtype: np.dtype, place: ReleaseTensor, tensor: StoredTensor
) -> np.ndarray:
    values = place.from_release(tensor.read())
    values = np.array(values, dtype, order="C")  # a copy: the file may change
    if not np.isfinite(values).all():
        raise UserError(f"{path} can't be used: {place.name} holds NaN or infinite values")
    return values


def _read_tree(leaves: Leaves) -> PyTree[Array]:
    return traverse_util.unflatten_dict(
        {path: jax.device_put(read()) for path, read in leaves.items()}
    )
