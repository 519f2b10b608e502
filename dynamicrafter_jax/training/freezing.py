"""Chooses which parameters train: presets by name, and splitting and joining of trees."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import traverse_util
from jaxtyping import PyTree

from dynamicrafter_jax.errors import UserError

_PROJECTOR = "projector/.*"
_TEMPORAL = r".*/(temporal|temporal_conv)/.*|init_attn/.*"

# What trains, as regular expressions for whole paths, "section/module/.../leaf". VAE and towers
# are pretrained, and train only for a model that is trained from scratch.
PRESETS: Mapping[str, str] = {
    # Stage 1 of arXiv 2310.12190, section 3.4.
    "projector_and_image_attention": (
        rf"{_PROJECTOR}|unet/.*/attn2/((image_key|image_value)/kernel|alpha)"
    ),
    # Stages 2 and 3: everything that works within a frame.
    "projector_and_spatial": rf"{_PROJECTOR}|unet/(?!{_TEMPORAL}|(time|fs)_embed/).*",
    # The release's fine-tuning.
    "all": f"{_PROJECTOR}|unet/.*",
    "unet": "unet/.*",
    "vae": "vae/.*",
    "towers": f"{_PROJECTOR}|(text|image)_encoder/.*",
    "temporal_frozen": rf"{_PROJECTOR}|unet/(?!{_TEMPORAL}).*",
}


def trains(trainable: str) -> Callable[[str], bool]:
    """Returns a function that tells whether the parameter at a path ("unet/out/kernel") trains.

    Args:
        trainable: The name of a preset, or a regular expression for whole paths.

    Raises:
        UserError: There is no such preset, or the expression is invalid.
    """
    if trainable not in PRESETS and "/" not in trainable:
        raise UserError(
            f"train.trainable is {trainable!r}: choose from {', '.join(PRESETS)}, or give a "
            "regular expression for whole paths, as 'unet/out/.*'"
        )
    try:
        pattern = re.compile(PRESETS.get(trainable, trainable))
    except re.error as error:
        raise UserError(
            f"train.trainable: {trainable!r} is not a regular expression: {error}"
        ) from None
    return lambda path: pattern.fullmatch(path) is not None


def split(tree: PyTree, trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into those that train and those that don't, as two nested dicts.

    Raises:
        UserError: Nothing would train; see also `trains`.
    """
    chosen = trains(trainable)
    leaves = traverse_util.flatten_dict(tree, sep="/")
    parts = (
        {path: leaf for path, leaf in leaves.items() if chosen(path) is wanted}
        for wanted in (True, False)
    )
    trained, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    if not trained:
        raise UserError(f"train.trainable {trainable!r} matches no parameter: nothing would train")
    return trained, frozen


def join(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the trees that `split` returns."""
    leaves = traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second)
    return traverse_util.unflatten_dict(leaves)
