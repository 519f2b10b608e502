"""Which model a file holds, where it is not the one that was asked for."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.hub import RELEASES
from dynamicrafter_jax.release import PREFIXES

MODELS = ("demo", *RELEASES.values())
"""The names of configs of models; a recipe has the networks of one of them."""

Shapes = Mapping[str, tuple[int, ...]]

_UNET = PREFIXES["unet"]


def models_like(shapes: Shapes) -> list[str]:
    """Returns those of `MODELS` that a release file may be; some have the same tensors.

    Args:
        shapes: Of the file's tensors, by name.
    """
    return [name for name in MODELS if is_like(shapes, load_config(name))]


def is_like(shapes: Shapes, config: ConfigDict) -> bool:
    """Returns whether a release file may be of a config.

    A few tensors tell, so that no network need be traced. Those of networks that the file leaves
    out are not asked for.
    """
    has_scales = any(name.endswith(".attn2.alpha") for name in shapes)
    return (
        f"{_UNET}.out.2.weight" in shapes
        and config.unet.image_cross_attention_scale_learnable == has_scales
        and all(shapes.get(name, shape) == shape for name, shape in _telling(config).items())
    )


def in_words(names: list[str]) -> str:
    """Returns "a", "a or b", or "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def article(name: str) -> str:
    """Returns "an" or "a", as stands before a config's name."""
    return "an" if name[:1] in "aeiou" else "a"


def same_networks(one: ConfigDict, other: ConfigDict) -> bool:
    """Returns whether two configs are of the same networks, as far as a few tensors tell."""
    scales = {of.unet.image_cross_attention_scale_learnable for of in (one, other)}
    return len(scales) == 1 and _telling(one) == _telling(other)


def _telling(config: ConfigDict) -> Shapes:
    """Shapes of tensors that differ from model to model, by name."""
    unet, vae, text, image = config.unet, config.vae, config.text_encoder, config.image_encoder
    return {
        f"{_UNET}.input_blocks.0.0.weight": (unet.model_channels, unet.in_channels, 3, 3),
        f"{_UNET}.out.2.weight": (unet.out_channels, unet.model_channels, 3, 3),
        f"{PREFIXES['vae']}.encoder.conv_in.weight": (vae.ch, 3, 3, 3),
        f"{PREFIXES['text_encoder']}.positional_embedding": (text.context_length, text.width),
        f"{PREFIXES['image_encoder']}.conv1.weight": (image.width, 3, *2 * (image.patch_size,)),
    }
