"""The parameters that training starts from: weights from several sources, and fresh ones."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.hub_formats import clip_formats, open_hub_file, vae_formats
from dynamicrafter_jax.weights.load import (
    Leaf,
    Leaves,
    Release,
    Tensors,
    abstract_params,
    fill,
    open_canonical,
    open_converted,
    open_towers,
    pick_networks,
)
from dynamicrafter_jax.weights.names import find_model
from dynamicrafter_jax.weights.recognition import describe_schedule
from dynamicrafter_jax.weights.release import FROZEN_SECTIONS, PREFIXES
from dynamicrafter_jax.weights.tensors import StoredTensor, list_names

# Layers that a text-to-video model may lack; each group is either complete or entirely missing.
FRESH_IN_TEXT_TO_VIDEO = (
    r"model\.diffusion_model\..*\.attn2\.to_[kv]_ip\.weight",  # keys and values of the image
    r"model\.diffusion_model\..*\.attn2\.alpha",  # the image attention's scale (256)
    r"model\.diffusion_model\.fps_embedding\..*",
)
_INPUT_KERNEL = f"{PREFIXES['unet']}.input_blocks.0.0.weight"
_RELATIVE_POSITIONS = ".relative_position_k.embeddings_table"


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        path: The file or directory; `load.origin` returns its name and SHA-256.
        kind: Its format, in a word or two.
    """

    path: epath.PathLike
    kind: str


@dataclass(frozen=True)
class Start:
    """The parameters that training starts from, all found and none read yet.

    Attributes:
        sources: Where each network comes from; networks without a source are entirely fresh.
        fresh: Paths of the parameters that are drawn at random, such as "unet/input_0/kernel".
    """

    sources: Mapping[str, Source]
    fresh: tuple[str, ...]
    _leaves: Mapping[str, Leaf]

    def leaf(self, path: str) -> Array | np.ndarray:
        """Reads or draws one parameter by its path, such as "unet/input_0/kernel".

        Read neighbouring parameters one after another. Fresh parameters have the values that
        `models.layers.init_params` draws for the whole model.

        Raises:
            UserError: Its values are not finite, or its file is damaged.
        """
        return self._leaves[path]()

    def summary(self) -> list[str]:
        """Returns lines for a log: each network's source, and which parameters are fresh."""
        lines = []
        for network, source in self.sources.items():
            fresh = [path for path in self.fresh if path.startswith(f"{network}/")]
            rest = f"; {len(fresh)} parameters fresh: {list_names(fresh, 4)}" if fresh else ""
            lines.append(f"{network}: {source.path} ({source.kind}){rest}")
        wholly = {path.split("/")[0] for path in self.fresh} - set(self.sources)
        return lines + ([f"fresh: {', '.join(sorted(wholly))}"] if wholly else [])


@contextlib.contextmanager
def open_start(
    config: ConfigDict,
    init: Mapping[str, Any] | ConfigDict,
    key: jax.Array,
    *,
    random_towers: bool = False,
) -> Iterator[Start]:
    """Finds everything that training starts from, and checks that it is complete.

    The fields of `init`, the config's section, are paths or unset; if all are unset, everything is
    fresh. `checkpoint` and `towers` may also be names of models (see `names`).

    - `checkpoint`: a release file or a converted model. It has the U-Net and the projector, and
      may leave out the frozen networks.
    - `videocrafter`: instead, a VideoCrafter text-to-video checkpoint. Its U-Net takes only the
      noisy latent, and gets zero-valued weights for the channels of the concatenated one. The
      projector and the layers in `FRESH_IN_TEXT_TO_VIDEO` that it lacks start fresh.
    - `clip`: text and vision tower of OpenCLIP ViT-H/14, or one of them, in a file of open_clip or
      transformers. It takes precedence over all others.
    - `vae`: Stable Diffusion's VAE, in a file of diffusers or LDM. It takes precedence over all
      others.
    - `towers`: a release file or a converted model, for frozen networks that no other source has.

    Args:
        config: The config of the model; parameters become `precision.param_dtype`.
        init: See above.
        key: A typed PRNG key, for fresh parameters.
        random_towers: Whether frozen networks may be fresh even if a path is given.

    Yields:
        The start, valid inside the block.

    Raises:
        UserError: A file is missing, broken or of an unknown format, or does not fit the config; or
            no source has a frozen network. The message names every tensor concerned.
    """
    given = {name: init.get(name) or None for name in _FIELDS}
    if given["checkpoint"] and given["videocrafter"]:
        raise UserError(
            "init.checkpoint and init.videocrafter exclude each other: "
            "both have the U-Net, so give only one"
        )
    for name in ("checkpoint", "towers"):
        if (source := given[name]) is not None:
            given[name] = os.fspath(find_model(source))
    boxed = abstract_params(config)
    with contextlib.ExitStack() as stack:
        found, sources = _open_all(given, boxed, config, stack)
        if any(given.values()) and not random_towers:
            _check_frozen(found)
        yield _combine(found, sources, boxed, key)


_FIELDS = ("checkpoint", "videocrafter", "clip", "vae", "towers")
_FROZEN_FIELDS = {"vae": "vae", "text_encoder": "clip", "image_encoder": "clip"}


def _open_all(
    given: Mapping[str, Any],
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Leaves], dict[str, Source]]:
    """Returns the leaves of each network that has a source, and the sources."""
    found: dict[str, Leaves] = {}
    sources: dict[str, Source] = {}

    def take(release: Release, kind: str) -> None:
        found.update(release.leaves)
        sources.update(dict.fromkeys(release.leaves, Source(release.sources[0], kind)))

    for field, formats in (("clip", clip_formats), ("vae", vae_formats)):
        if given[field]:
            take(*open_hub_file(given[field], formats(config), boxed, config, stack))
    rest = {name: tree for name, tree in boxed.items() if name not in found}
    if given["checkpoint"]:
        take(*_open_checkpoint(given["checkpoint"], rest, config, stack))
    if given["videocrafter"]:
        take(_open_text_to_video(given["videocrafter"], rest, config, stack), "VideoCrafter")
    if given["towers"]:
        lacked = {name: boxed[name] for name in FROZEN_SECTIONS if name not in found}
        if lacked:
            kind = "converted model" if as_path(given["towers"]).is_dir() else "release"
            take(open_towers(given["towers"], lacked, config, stack), kind)
        else:
            warnings.warn(
                f"init.towers ({given['towers']}) is not read: no frozen network is missing",
                stacklevel=2,
            )
    return found, sources


def _open_checkpoint(
    path: epath.PathLike,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> tuple[Release, str]:
    """Opens the networks of `boxed` in a release file or converted model."""
    if as_path(path).is_dir():
        # As plain dicts, since a config locked by flags is equal to no other.
        if converted.read_config(path).diffusion.to_dict() != config.diffusion.to_dict():
            warnings.warn(f"{path} was made for another noise schedule", stacklevel=2)
        return open_converted(path, boxed, config, stack), "converted model"
    tensors = open_canonical(path, stack)
    if difference := describe_schedule(path, config, tensors):
        warnings.warn(difference, stacklevel=2)
    return pick_networks(path, tensors, boxed, config), "release"


def _open_text_to_video(
    path: epath.PathLike,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> Release:
    """Opens the networks of `boxed` that a VideoCrafter checkpoint has."""
    tensors = open_canonical(path, stack)
    if any(name.endswith(_RELATIVE_POSITIONS) for name in tensors):
        raise UserError(
            f"{path} has relative positions along time, as VideoCrafter1's text-to-video models "
            "do, and this network has none: use VideoCrafter2's"
        )
    return pick_networks(
        path,
        _grow_input(path, tensors, config),
        boxed,
        config,
        may_lack=(*FROZEN_SECTIONS, "projector"),
        may_start_fresh=FRESH_IN_TEXT_TO_VIDEO,
    )


def _grow_input(path: epath.PathLike, tensors: Tensors, config: ConfigDict) -> Tensors:
    """Appends zeros to the input convolution, for the channels after the noisy latent's."""
    kernel = tensors.get(_INPUT_KERNEL)
    noisy, all_channels = config.vae.z_channels, config.unet.in_channels
    if kernel is None or len(kernel.shape) != 4:
        return tensors
    out, channels, *sides = kernel.shape
    if channels == all_channels != noisy:
        raise UserError(
            f"{path} is not a text-to-video model: its U-Net takes {channels} channels, including "
            "the concatenated latent; give it as init.checkpoint"
        )
    if channels != noisy:
        return tensors

    def read() -> np.ndarray:
        return np.pad(kernel.read(), ((0, 0), (0, all_channels - noisy), (0, 0), (0, 0)))

    grown = StoredTensor((out, all_channels, *sides), kernel.dtype, read)
    return {**tensors, _INPUT_KERNEL: grown}


def _check_frozen(found: Mapping[str, Leaves]) -> None:
    lacked = [name for name in FROZEN_SECTIONS if name not in found]
    if lacked:
        fields = sorted({f"init.{_FROZEN_FIELDS[name]}" for name in lacked})
        raise UserError(
            f"no source has the {' and the '.join(lacked)}, which would stay frozen at random "
            f"values: give {' and '.join(fields)}, or init.towers"
        )


def _combine(
    found: Mapping[str, Leaves],
    sources: Mapping[str, Source],
    boxed: Mapping[str, PyTree],
    key: jax.Array,
) -> Start:
    leaves: dict[str, Leaf] = {}
    fresh = []
    for network, tree in fill(found, boxed, key).items():
        for path, read in tree.items():
            name = "/".join((network, *path))
            leaves[name] = read
            if path not in found.get(network, {}):
                fresh.append(name)
    return Start(sources, tuple(fresh), leaves)
