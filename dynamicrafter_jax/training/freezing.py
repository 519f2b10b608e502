"""Which parameters train: presets by name, and a tree split in two and joined again."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import traverse_util
from jaxtyping import PyTree

from dynamicrafter_jax.errors import UserError

_PROJECTOR = "projector/.*"
_TEMPORAL = r".*/(temporal|temporal_conv)/.*|init_attn/.*"

# What trains, as regular expressions of whole paths, "section/module/.../leaf". VAE and towers
# come with weights, and train only for a model that starts from nothing.
PRESETS: Mapping[str, tuple[str, ...]] = {
    # Stage 1 of arXiv 2310.12190, section 3.4.
    "projector_and_image_attention": (
        _PROJECTOR,
        r"unet/.*/attn2/(image_key|image_value)/kernel",
        r"unet/.*/attn2/alpha",
    ),
    # Stages 2 and 3: all that works within a frame.
    "projector_and_spatial": (
        _PROJECTOR,
        rf"unet/(?!{_TEMPORAL}|(time|fs)_embed/).*",
    ),
    # The release's fine-tuning.
    "all": (_PROJECTOR, "unet/.*"),
    "vae": ("vae/.*",),
    "towers": (_PROJECTOR, "(text|image)_encoder/.*"),
    "temporal_frozen": (_PROJECTOR, rf"unet/(?!{_TEMPORAL}).*"),
}


def trains(trainable: str | Sequence[str]) -> Callable[[str], bool]:
    """Returns whether the parameter at a path, such as "unet/out/kernel", trains.

    Args:
        trainable: The name of a preset, or regular expressions of whole paths.

    Raises:
        UserError: If there is no such preset, or an expression is none.
    """
    if isinstance(trainable, str):
        if trainable not in PRESETS:
            raise UserError(
                f"train.trainable is {trainable!r}: choose from {', '.join(PRESETS)}, "
                "or give a tuple of regular expressions"
            )
        trainable = PRESETS[trainable]
    try:
        patterns = [re.compile(pattern) for pattern in trainable]
    except re.error as error:
        raise UserError(f"train.trainable: {error.pattern!r} is no expression: {error}") from None
    return lambda path: any(pattern.fullmatch(path) for pattern in patterns)


def split(tree: PyTree, trainable: str | Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters that train and those that do not, as two trees of nested dicts.

    Raises:
        UserError: If nothing would train; see also `trains`.
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
    """Returns the tree that `split` parted."""
    leaves = traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second)
    return traverse_util.unflatten_dict(leaves)
