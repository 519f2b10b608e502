"""Reading parameters: out of release files, complete or not at all, and of converted models."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from dynamicrafter_jax import checkpoint
from dynamicrafter_jax.config import DTYPES, config_from_json, networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.files import as_path
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.provenance import sha256_of
from dynamicrafter_jax.release import (
    ALIASES,
    FROZEN_SECTIONS,
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

# Tracing a U-Net takes seconds.
_abstract_models = lru_cache(maxsize=4)(abstract_models)


Tensors = Mapping[str, StoredTensor]
Sections = Mapping[str, Mapping[str, ReleaseTensor]]
Readers = dict[str, Callable[[], PyTree[Array]]]


@dataclass(frozen=True)
class Release:
    """The tensors of a model in the release's naming, found complete, and read section by section.

    Attributes:
        readers: For each network, a function that reads its parameters.
        carried: The tensors that the model does not use and an export needs.
        sources: The file, and what the towers come from if they are not in it.
    """

    readers: Readers
    carried: Tensors
    sources: tuple[epath.PathLike, ...]


@dataclass(frozen=True)
class Summary:
    """What was converted or exported.

    Attributes:
        tensors: Tensors that hold parameters.
        parameters: Numbers in them.
        carried: Further tensors, kept so that an export is a complete release file.
    """

    tensors: int
    parameters: int
    carried: int


def load_pretrained(
    source: epath.PathLike,
    *,
    config: ConfigDict | None = None,
    towers: epath.PathLike | None = None,
) -> tuple[ConfigDict, dict[str, PyTree[Array]]]:
    """Returns the config and parameters of a converted model or a release file.

    Args:
        source: A directory that `convert` made, or a file that `tensors.open_tensors` reads.
        config: The config; for a directory, in place of its own.
        towers: See `load_release`.

    Raises:
        UserError: If the source is missing, broken or does not fit the config, or is a file
            and comes without a config.
    """
    if as_path(source).is_dir():
        description = checkpoint.read_description(source)
        stored = config_from_json(description["config"])
        if config is None:
            config = stored
        elif config.diffusion != stored.diffusion:
            warnings.warn(f"{source} was made for another noise schedule", stacklevel=2)
        abstract = nn.meta.unbox(abstract_params(config))
        return config, checkpoint.load_converted(
            source, abstract, dtype=DTYPES[config.precision.param_dtype]
        )
    if config is None:
        raise UserError(
            f"{source} needs a config, as config='i2v_1024': the 512, 1024 and interpolation "
            "releases hold the same tensors, so a file does not say which it is"
        )
    return config, load_release(source, config, towers=towers)


def load_release(
    path: epath.PathLike,
    config: ConfigDict,
    *,
    towers: epath.PathLike | None = None,
    progress: bool = False,
) -> dict[str, PyTree[Array]]:
    """Returns the parameters in a release file, by network.

    Args:
        path: A file that `tensors.open_tensors` reads.
        config: The config of the model in it; parameters become `precision.param_dtype`.
        towers: Where the frozen networks (VAE, text and vision tower) that the file leaves out
            come from: another release file, or a converted model.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Raises:
        UserError: If a tensor is missing, unexpected, misshapen or not finite, if the file was
            made for another noise schedule, or if it can't be read.
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
    """Opens a release file and makes sure that it is complete; see `load_release`."""
    boxed = abstract_params(config)
    unused = unused_tensors(config.text_encoder.layers)
    with contextlib.ExitStack() as stack:
        tensors = _open_canonical(path, stack)
        sections = {name: release_tensors({name: tree}) for name, tree in boxed.items()}
        absent = [
            name for name in FROZEN_SECTIONS if not any(key in tensors for key in sections[name])
        ]
        present = {name: section for name, section in sections.items() if name not in absent}
        used = {name: tensor for name, tensor in tensors.items() if name not in unused}
        _check_complete(path, config, present, used)
        _check_schedule(path, config, tensors)
        bar = stack.enter_context(
            tqdm(unit=" tensors", leave=False, disable=None if progress else True)
        )
        found = _release(path, tensors, present, config, bar)
        if absent:
            if towers is None:
                raise UserError(
                    f"{path} has no {' and no '.join(absent)}: say with towers which release "
                    "file or converted model to take from"
                )
            lacked = {name: boxed[name] for name in absent}
            found = _join(found, _open_towers(towers, lacked, config, stack, bar))
        elif towers is not None:
            warnings.warn(f"{towers} is not read: {path} has all networks", stacklevel=2)
        yield found


def origin(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns name and SHA-256 of a file, or of those that a converted model was made from."""
    file = as_path(path)
    if file.is_dir():
        return checkpoint.read_description(file)["sources"]
    return [{"name": file.name, "sha256": sha256_of(file)}]


def abstract_params(config: ConfigDict) -> dict[str, PyTree]:
    """Returns the parameters that a config describes, as `models.abstract_models` does.

    Raises:
        UserError: If the config does not fit the networks.
    """
    return _abstract_models(networks_of(config))


def _open_canonical(path: epath.PathLike, stack: contextlib.ExitStack) -> dict[str, StoredTensor]:
    """Opens a release file, older names replaced by today's."""

    def today(name: str) -> str:
        for old, new in ALIASES:
            name = name.replace(old, new)
        return name

    return rename_tensors(stack.enter_context(open_tensors(path)), today, path)


def _open_towers(
    towers: epath.PathLike,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
    bar: tqdm,
) -> Release:
    """Opens the networks of `boxed` in another release file or a converted model."""
    if as_path(towers).is_dir():
        checkpoint.read_description(towers)
        readers: Readers = {
            name: partial(
                checkpoint.restore_tree,
                checkpoint.section_path(towers, name),
                nn.meta.unbox(tree),
                dtype=DTYPES[config.precision.param_dtype],
            )
            for name, tree in boxed.items()
        }
        carried = stack.enter_context(checkpoint.open_carried(towers))
        return Release(readers, carried, (towers,))
    tensors = _open_canonical(towers, stack)
    sections = {name: release_tensors({name: tree}) for name, tree in boxed.items()}
    names = {name for section in sections.values() for name in section}
    used = {name: tensor for name, tensor in tensors.items() if name in names}
    _check_complete(towers, config, sections, used)
    return _release(towers, tensors, sections, config, bar)


def _release(
    path: epath.PathLike, tensors: Tensors, sections: Sections, config: ConfigDict, bar: tqdm
) -> Release:
    """Returns the networks of `sections` out of an open file, and what it carries."""
    unused = unused_tensors(config.text_encoder.layers)
    dtype = DTYPES[config.precision.param_dtype]
    read = partial(_read_section, path, tensors, dtype, bar)
    readers: Readers = {name: partial(read, section) for name, section in sections.items()}
    bar.total = (bar.total or 0) + sum(map(len, sections.values()))
    carried = {name: t for name, t in tensors.items() if unused.get(name) == "carried"}
    return Release(readers, carried, (path,))


def _join(first: Release, second: Release) -> Release:
    """Returns both, the first winning where both carry a tensor."""
    return Release(
        first.readers | second.readers,
        {**second.carried, **first.carried},
        first.sources + second.sources,
    )


def _check_complete(
    path: epath.PathLike, config: ConfigDict, wanted: Sections, found: Tensors
) -> None:
    shapes = {name: t.shape for section in wanted.values() for name, t in section.items()}
    if mismatch := describe_mismatch(shapes, {name: t.shape for name, t in found.items()}):
        raise UserError(f"{path} does not fit the config {config.name}: {mismatch}")
    for name, tensor in found.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{path} is no model: {name} holds {tensor.dtype}, not weights")


def _check_schedule(path: epath.PathLike, config: ConfigDict, found: Tensors) -> None:
    """Notices a file of another release of the same shapes, by the buffers that it holds."""
    buffers = schedule_buffers(config.diffusion.to_dict())
    for name in _TELLING_BUFFERS:
        if name not in found:
            continue
        ours, theirs = buffers.get(name, np.zeros(0)), found[name].read().astype(np.float32)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=_BUFFER_TOLERANCE):
            raise UserError(
                f"{path} was made for another noise schedule than the config {config.name} "
                f"describes (its {name} differs): give the config of this release"
            )


def _read_section(
    path: epath.PathLike,
    tensors: Tensors,
    dtype: np.dtype,
    bar: tqdm,
    section: Mapping[str, ReleaseTensor],
) -> dict[str, PyTree[Array]]:
    """Reads the parameters of a network, one tensor at a time."""
    tree: dict[str, Any] = {}
    for name, place in section.items():
        values = place.from_release(tensors[name].read())
        values = np.array(values, dtype, order="C")  # a copy: the file may change
        if not np.isfinite(values).all():
            raise UserError(f"{path} can't be used: {name} holds NaN or infinite values")
        parent = tree
        for key in place.path[1:-1]:
            parent = parent.setdefault(key, {})
        parent[place.path[-1]] = jax.device_put(values)
        bar.update()
    return tree
