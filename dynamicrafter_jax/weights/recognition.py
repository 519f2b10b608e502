"""Checks that a file holds the expected model; if not, says which model it looks like."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.quiet import DEBUG
from dynamicrafter_jax.weights.hub import RELEASES
from dynamicrafter_jax.weights.release import PREFIXES, schedule_buffers
from dynamicrafter_jax.weights.tensors import StoredTensor, describe_mismatch

MODELS = ("demo", *RELEASES.values())
"""The names of the models' configs; a training recipe has the networks of one of them."""

Shapes = Mapping[str, tuple[int, ...]]

_UNET = PREFIXES["unet"]

# Buffers of a release file that depend on the config it was trained with, and how much those of a
# file in half precision may differ from the exact values.
_TELLING_BUFFERS = ("alphas_cumprod", "scale_arr")
_BUFFER_TOLERANCE = 5e-3


def models_like(shapes: Shapes) -> list[str]:
    """Returns the names in `MODELS` that a release file may be; some have the same tensors.

    Args:
        shapes: Shapes of the file's tensors, by name.
    """
    return [name for name in MODELS if is_like(shapes, load_config(name))]


def is_like(shapes: Shapes, config: ConfigDict) -> bool:
    """Returns whether a release file may belong to a config.

    Only a few telling tensors are compared, so that no network has to be traced. Networks that the
    file leaves out are not required.
    """
    has_scales = any(name.endswith(".attn2.alpha") for name in shapes)
    return (
        f"{_UNET}.out.2.weight" in shapes
        and config.unet.image_cross_attention_scale_learnable == has_scales
        and all(shapes.get(name, shape) == shape for name, shape in _telling(config).items())
    )


def check_complete(
    path: epath.PathLike,
    config: ConfigDict,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, StoredTensor],
    *,
    release: bool = False,
) -> None:
    """Checks that a file has exactly the expected tensors.

    Args:
        path: The file, for messages.
        config: The config of the model.
        wanted: Shapes of the expected tensors, by name.
        found: The file's tensors, without those that don't matter.
        release: Whether it is a release file, for which messages can say which model it looks like.

    Raises:
        UserError: One is missing, unexpected, misshapen or of integers.
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
            raise UserError(f"{path} is not a model: {name} holds {tensor.dtype}, not weights")


def describe_schedule(
    path: epath.PathLike, config: ConfigDict, found: Mapping[str, StoredTensor]
) -> str:
    """Returns a message if a file's buffers show another noise schedule; otherwise ""."""
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


def _differing_buffer(config: ConfigDict, found: Mapping[str, StoredTensor]) -> str | None:
    """Returns the name of a buffer in a file that differs from the config's, if any."""
    buffers = schedule_buffers(config.diffusion.to_dict())
    for name in _TELLING_BUFFERS:
        if name not in found:
            continue
        ours, theirs = buffers.get(name, np.zeros(0)), found[name].read().astype(np.float32)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=_BUFFER_TOLERANCE):
            return name
    return None


def in_words(names: list[str]) -> str:
    """Returns "a", "a or b", or "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def article(name: str) -> str:
    """Returns "an" or "a", whichever a config's name needs."""
    return "an" if name[:1] in "aeiou" else "a"


def same_networks(one: ConfigDict, other: ConfigDict) -> bool:
    """Returns whether two configs have the same networks, judging by a few tensors."""
    scales = {of.unet.image_cross_attention_scale_learnable for of in (one, other)}
    return len(scales) == 1 and _telling(one) == _telling(other)


def _telling(config: ConfigDict) -> Shapes:
    """Returns the shapes of tensors that differ between models, by name."""
    unet, vae, text, image = config.unet, config.vae, config.text_encoder, config.image_encoder
    return {
        f"{_UNET}.input_blocks.0.0.weight": (unet.model_channels, unet.in_channels, 3, 3),
        f"{_UNET}.out.2.weight": (unet.out_channels, unet.model_channels, 3, 3),
        f"{PREFIXES['vae']}.encoder.conv_in.weight": (vae.ch, 3, 3, 3),
        f"{PREFIXES['text_encoder']}.positional_embedding": (text.context_length, text.width),
        f"{PREFIXES['image_encoder']}.conv1.weight": (image.width, 3, *2 * (image.patch_size,)),
    }
