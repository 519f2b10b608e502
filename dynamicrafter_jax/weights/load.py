"""Reads parameters from release files, complete or not at all, and from converted models."""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from dynamicrafter_jax.config import DTYPES, config_from_json, load_config, networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.runtime.provenance import sha256_of
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.names import find_model, known_config
from dynamicrafter_jax.weights.recognition import (
    article,
    check_complete,
    describe_schedule,
    same_networks,
)
from dynamicrafter_jax.weights.release import (
    ALIASES,
    FROZEN_SECTIONS,
    PREFIXES,
    ReleaseTensor,
    release_tensors,
    unused_tensors,
)
from dynamicrafter_jax.weights.tensors import StoredTensor, open_tensors, rename_tensors

Tensors = Mapping[str, StoredTensor]
Sections = Mapping[str, Mapping[str, ReleaseTensor]]
Leaf = Callable[[], Array | np.ndarray]
Leaves = Mapping[tuple[str, ...], Leaf]


@dataclasses.dataclass(frozen=True)
class Release:
    """Networks in a file or a converted model, checked to be complete and not yet read.

    Attributes:
        leaves: For each network, functions that read its parameters, by path in its tree. They work
            while the file is open.
        carried: Tensors that the model does not use but an export needs.
        sources: The file, and the source of the towers if they are not in it.
    """

    leaves: Mapping[str, Leaves]
    carried: Tensors
    sources: tuple[epath.PathLike, ...]

    @property
    def readers(self) -> dict[str, Callable[[], PyTree[Array]]]:
        """For each network, a function that reads all of its parameters onto one device."""
        return {section: partial(_read_tree, leaves) for section, leaves in self.leaves.items()}

    def join(self, other: "Release") -> "Release":
        """Merges two; `other` wins if both have a network, `self` if both carry a tensor."""
        return Release(
            {**self.leaves, **other.leaves},
            {**other.carried, **self.carried},
            self.sources + other.sources,
        )


def load_pretrained(
    source: epath.PathLike,
    *,
    config: ConfigDict | None = None,
    towers: epath.PathLike | None = None,
) -> tuple[ConfigDict, dict[str, PyTree[Array]]]:
    """Returns the config and parameters of a converted model or a release file.

    Args:
        source: A directory that `convert` made, a file that `tensors.open_tensors` reads, or the
            name of a model (see `names`).
        config: The config; for a directory or a name, it replaces the model's own.
        towers: See `load_release`; may be a name too.

    Raises:
        UserError: The source is missing, broken or does not fit the config, or it is a file and no
            config is given; or as in `names.find_model`.
    """
    place = find_model(source)
    if place.is_dir():
        description = converted.read_description(place)
        stored = config_from_json(description["config"])
        if config is None:
            config = stored
        elif config.name != stored.name and not same_networks(config, stored):
            raise UserError(
                f"{source} is not {article(config.name)} {config.name} model: it was made with "
                f"the config {stored.name}, which is stored with it, so give no config"
            )
        elif config.diffusion.to_dict() != stored.diffusion.to_dict():  # one may be locked
            warnings.warn(f"{source} was made for another noise schedule", stacklevel=2)
        abstract = nn.meta.unbox(abstract_params(config))
        return config, converted.load_converted(
            place, abstract, dtype=DTYPES[config.precision.param_dtype]
        )
    if config is None and (name := known_config(source)) is not None:
        config = load_config(name)
    if config is None:
        if not place.exists():
            raise UserError(f"{place} does not exist: check the path")
        raise UserError(
            f"{source} needs a config, such as config='i2v_1024': the 512, 1024 and interpolation "
            "releases hold the same tensors, so a file does not say which it is"
        )
    towers = None if towers is None else find_model(towers)
    return config, load_release(place, config, towers=towers)


def load_release(
    path: epath.PathLike,
    config: ConfigDict,
    *,
    towers: epath.PathLike | None = None,
    progress: bool = False,
) -> dict[str, PyTree[Array]]:
    """Returns the parameters in a release file, by network.

    Adapters, which no release has, are drawn with key 0.

    Args:
        path: A file that `tensors.open_tensors` reads.
        config: The config of the model in it; parameters become `precision.param_dtype`.
        towers: The source of frozen networks (VAE, text and vision tower) that the file leaves out:
            another release file, or a converted model.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Raises:
        UserError: A tensor is missing, unexpected, misshapen or not finite; the file was made for
            another noise schedule; or it can't be read.
    """
    with open_release(path, config, towers=towers, progress=progress) as release:
        return {section: read() for section, read in release.readers.items()}


@contextlib.contextmanager
def open_release(
    path: epath.PathLike,
    config: ConfigDict,
    *,
    towers: epath.PathLike | None = None,
    progress: bool = False,
) -> Iterator[Release]:
    """Opens a release file and checks that it is complete; see `load_release`."""
    boxed = abstract_params(config)
    with contextlib.ExitStack() as stack:
        tensors = open_canonical(path, stack)
        found = pick_networks(path, tensors, boxed, config)
        if difference := describe_schedule(path, config, tensors):
            raise UserError(f"{difference}: give the config of this release")
        lacked = {name: tree for name, tree in boxed.items() if name not in found.leaves}
        if lacked:
            if towers is None:
                raise UserError(
                    f"{path} has no {' and no '.join(lacked)}: set towers to a release file or "
                    "converted model that does"
                )
            found = found.join(open_towers(towers, lacked, config, stack))
        elif towers is not None:
            warnings.warn(f"{towers} is not read: {path} has all networks", stacklevel=2)
        found = dataclasses.replace(found, leaves=fill(found.leaves, boxed, jax.random.key(0)))
        yield _with_bar(found, stack) if progress else found


def origin(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the name and SHA-256 of a file, or the `sources` of a converted model."""
    file = as_path(path)
    if file.is_dir():
        return converted.read_description(file)["sources"]
    return [{"name": file.name, "sha256": sha256_of(file)}]


def abstract_params(config: ConfigDict) -> dict[str, PyTree]:
    """Returns the parameters that a config describes, as `models.abstract_models` does.

    Raises:
        UserError: The config does not fit the networks.
    """
    return abstract_models(networks_of(config))


def open_canonical(path: epath.PathLike, stack: contextlib.ExitStack) -> dict[str, StoredTensor]:
    """Opens a release file until `stack` closes, with older names replaced by current ones."""

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
        tensors: Its tensors, by current names. Those of networks not in `boxed` are ignored.
        boxed: Abstract parameters of the networks to read.
        config: The config of the model.
        may_lack: Networks that may be missing, from the file and thus from the result.
        may_start_fresh: Regular expressions for names. The parameters that match one may be
            missing, but only all of them together; they are then missing from the result.

    Raises:
        UserError: A tensor is missing, unexpected, misshapen or of integers.
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
        UserError: One is missing, broken or incomplete.
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
        UserError: The model is broken, or one of its networks does not fit.
    """
    converted.read_description(directory)
    leaves: dict[str, Leaves] = {}
    for section, tree in boxed.items():
        abstract = nn.meta.unbox(tree)
        read = converted.open_tree(
            converted.section_path(directory, section),
            abstract,
            dtype=DTYPES[config.precision.param_dtype],
        )
        paths = traverse_util.flatten_dict(abstract)
        leaves[section] = {path: partial(read, path) for path in paths}
    carried = stack.enter_context(converted.open_carried(directory))
    return Release(leaves, carried, (directory,))


def as_release(
    path: epath.PathLike, tensors: Tensors, sections: Sections, config: ConfigDict
) -> Release:
    """Returns the networks of `sections` in an open file, with the tensors it carries."""
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


def fill(
    leaves: Mapping[str, Leaves], boxed: Mapping[str, PyTree], key: jax.Array
) -> dict[str, Leaves]:
    """Returns functions for all parameters of `boxed`; those missing in `leaves` are drawn.

    Args:
        leaves: Functions that read parameters, as in `Release`.
        boxed: Abstract parameters by network.
        key: A typed PRNG key; `models.layers.init_params` draws the same values with it.
    """
    filled: dict[str, Leaves] = {}
    for network, tree in boxed.items():
        known = leaves.get(network, {})
        filled[network] = {
            path: known.get(path) or partial(_draw, (network, *path), box, key)
            for path, box in traverse_util.flatten_dict(tree).items()
        }
    return filled


def _draw(path: tuple[str, ...], box: Any, key: jax.Array) -> Array:
    """Draws one leaf, with the value that it has when all are drawn."""
    (value,) = jax.tree.leaves(init_params(traverse_util.unflatten_dict({path: box}), key))
    return value


def _with_bar(release: Release, stack: contextlib.ExitStack) -> Release:
    """Shows a progress bar of the tensors read, if stderr is a terminal."""
    total = sum(map(len, release.leaves.values()))
    bar = stack.enter_context(tqdm(total=total, unit=" tensors", leave=False, disable=None))

    def counted(read: Leaf) -> Leaf:
        def read_and_count() -> Any:
            values = read()
            bar.update()
            return values

        return read_and_count

    leaves = {
        section: {path: counted(read) for path, read in tree.items()}
        for section, tree in release.leaves.items()
    }
    return dataclasses.replace(release, leaves=leaves)


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
