"""Reading parameters: out of release files, complete or not at all, and of converted models."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import flax.linen as nn
from etils import epath
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from dynamicrafter_jax import checkpoint
from dynamicrafter_jax.config import DTYPES, config_from_json, load_config, networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.files import as_path
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.pretrained import find_model, known_config
from dynamicrafter_jax.provenance import sha256_of
from dynamicrafter_jax.reading import (
    Leaf,
    Release,
    describe_schedule,
    open_canonical,
    open_towers,
    pick_networks,
)
from dynamicrafter_jax.recognition import article, same_networks

# Tracing a U-Net takes seconds.
_abstract_models = lru_cache(maxsize=4)(abstract_models)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was converted or exported.

    Attributes:
        tensors: Tensors that hold parameters.
        parameters: Numbers in them.
        carried: Further tensors, kept so that an export is a complete release file.
        taken: Of a training run, which parameters these are, in words; else empty.
    """

    tensors: int
    parameters: int
    carried: int
    taken: str = ""


def load_pretrained(
    source: epath.PathLike,
    *,
    config: ConfigDict | None = None,
    towers: epath.PathLike | None = None,
) -> tuple[ConfigDict, dict[str, PyTree[Array]]]:
    """Returns the config and parameters of a converted model or a release file.

    Args:
        source: A directory that `convert` made, a file that `tensors.open_tensors` reads, or the
            name of a model (`pretrained`).
        config: The config; for a directory or a name, in place of its own.
        towers: See `load_release`; a name too.

    Raises:
        UserError: If the source is missing, broken or does not fit the config, or is a file
            and comes without a config; or as `pretrained.find_model`.
    """
    place = find_model(source)
    if place.is_dir():
        description = checkpoint.read_description(place)
        stored = config_from_json(description["config"])
        if config is None:
            config = stored
        elif config.name != stored.name and not same_networks(config, stored):
            raise UserError(
                f"{source} is not {article(config.name)} {config.name} model: it was made with "
                f"the config {stored.name}, which it knows by itself, so give none"
            )
        elif config.diffusion.to_dict() != stored.diffusion.to_dict():  # one may be locked
            warnings.warn(f"{source} was made for another noise schedule", stacklevel=2)
        abstract = nn.meta.unbox(abstract_params(config))
        return config, checkpoint.load_converted(
            place, abstract, dtype=DTYPES[config.precision.param_dtype]
        )
    if config is None and (name := known_config(source)) is not None:
        config = load_config(name)
    if config is None:
        if not place.exists():
            raise UserError(f"{place} does not exist: check the path")
        raise UserError(
            f"{source} needs a config, as config='i2v_1024': the 512, 1024 and interpolation "
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
    with contextlib.ExitStack() as stack:
        tensors = open_canonical(path, stack)
        found = pick_networks(path, tensors, boxed, config)
        if difference := describe_schedule(path, config, tensors):
            raise UserError(f"{difference}: give the config of this release")
        lacked = {name: tree for name, tree in boxed.items() if name not in found.leaves}
        if lacked:
            if towers is None:
                raise UserError(
                    f"{path} has no {' and no '.join(lacked)}: say with towers which release "
                    "file or converted model to take from"
                )
            found = found.join(open_towers(towers, lacked, config, stack))
        elif towers is not None:
            warnings.warn(f"{towers} is not read: {path} has all networks", stacklevel=2)
        yield _with_bar(found, stack) if progress else found


def origin(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns name and SHA-256 of a file, or the `sources` of a converted model."""
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


def _with_bar(release: Release, stack: contextlib.ExitStack) -> Release:
    """Shows a progress bar of what is read, if stderr is a terminal."""
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
