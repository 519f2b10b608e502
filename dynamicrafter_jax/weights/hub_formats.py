"""CLIP towers and VAEs in the formats used on model hubs.

A format is recognised by its tensors' names. Each is described by a table of names, as in
`release`; if a format stores query, key and value separately, one name such as
`self_attn.{q,k,v}_proj.weight` stands for all three.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.load import Release, Tensors, as_release
from dynamicrafter_jax.weights.recognition import check_complete
from dynamicrafter_jax.weights.release import RELEASE, Naming, ReleaseTensor, Table, release_tensors
from dynamicrafter_jax.weights.tensors import StoredTensor, open_tensors, rename_tensors


class HubFormat(NamedTuple):
    """A kind of file.

    Attributes:
        name: Name of the format, for messages.
        naming: How it names our parameters.
        marks: For each network that it may contain, a prefix of names that shows that it does.
        unused: Regular expression for names that are expected and not used here.
        scope: Prefix of the names that matter; others belong to other networks.
        aliases: Older names, as regular expressions, and their replacements.
    """

    name: str
    naming: Naming
    marks: Mapping[str, str]
    unused: str = ""
    scope: str = ""
    aliases: tuple[tuple[str, str], ...] = ()


def clip_formats(config: ConfigDict) -> tuple[HubFormat, ...]:
    """Returns the formats of CLIP towers: those of open_clip and of transformers.

    The text tower's last block is not run, so it is not read and may be absent.
    """
    last = config.text_encoder.layers - 1
    open_clip = HubFormat(
        "open_clip",
        Naming({"text_encoder": "", "image_encoder": "visual"}, RELEASE.tables),
        {"text_encoder": "transformer.resblocks.", "image_encoder": "visual."},
        rf"transformer\.resblocks\.{last}\..*|text_projection|logit_scale|attn_mask"
        r"|visual\.ln_post\..*|visual\.proj",
    )
    transformers = HubFormat(
        "transformers",
        Naming({"text_encoder": "text_model", "image_encoder": "vision_model"}, _TRANSFORMERS),
        {"text_encoder": "text_model.", "image_encoder": "vision_model."},
        rf"text_model\.encoder\.layers\.{last}\..*|(text|visual)_projection\.weight|logit_scale"
        r"|vision_model\.post_layernorm\..*|(text|vision)_model\.embeddings\.position_ids",
    )
    return open_clip, transformers


def vae_formats(config: ConfigDict) -> tuple[HubFormat, ...]:
    """Returns the formats of VAEs: diffusers, and latent diffusion (LDM), alone or whole models.

    An LDM file may also hold the losses and averaged weights of its training.
    """
    return (
        HubFormat(
            "diffusers",
            Naming({"vae": ""}, {"vae": _diffusers_table(len(config.vae.ch_mult))}),
            {"vae": "encoder.down_blocks."},
            aliases=_DIFFUSERS_ALIASES,
        ),
        HubFormat(
            "LDM",
            Naming({"vae": ""}, RELEASE.tables),
            {"vae": "encoder.down."},
            r"(loss|model_ema)\..*",
        ),
        HubFormat(
            "LDM, of a whole model",
            RELEASE,
            {"vae": "first_stage_model."},
            r"first_stage_model\.(loss|model_ema)\..*",
            scope="first_stage_model.",
        ),
    )


def open_hub_file(
    path: epath.PathLike,
    formats: Sequence[HubFormat],
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
    stack: contextlib.ExitStack,
) -> tuple[Release, str]:
    """Opens the networks in a file; returns them and the name of the file's format.

    Args:
        path: A file that `tensors.open_tensors` reads.
        formats: The formats that it may have.
        boxed: Abstract parameters of all networks.
        config: The config of the model; parameters become `precision.param_dtype`.
        stack: The stack that will close the file.

    Raises:
        UserError: It has none of the formats, or a tensor is missing, unexpected or misshapen.
    """
    tensors = stack.enter_context(open_tensors(path))
    for found in formats:
        present = {
            network: boxed[network]
            for network, mark in found.marks.items()
            if any(name.startswith(mark) for name in tensors)
        }
        if present:
            return _open_format(path, tensors, found, present, config), found.name
    known = " or ".join(f"{found.name} ({'*, '.join(found.marks.values())}*)" for found in formats)
    first = min(tensors)
    raise UserError(f"{path} has names of no known format, such as {first}: give a file of {known}")


def _open_format(
    path: epath.PathLike,
    tensors: Tensors,
    found: HubFormat,
    boxed: Mapping[str, PyTree],
    config: ConfigDict,
) -> Release:
    def today(name: str) -> str:
        for old, new in found.aliases:
            name = re.sub(old, new, name)
        return name

    sections = {name: release_tensors({name: tree}, found.naming) for name, tree in boxed.items()}
    places = [place for section in sections.values() for place in section.values()]
    wanted = {name: shape for place in places for name, shape in _parts(place).items()}
    used = {
        name: _as_convolution(tensor, wanted.get(name))
        for name, tensor in rename_tensors(tensors, today, path).items()
        if name.startswith(found.scope) and not re.fullmatch(found.unused, name)
    }
    check_complete(path, config, wanted, used)
    joined = {place.name: _join_parts(place, used) for place in places}
    return as_release(path, joined, sections, config)


def _parts(place: ReleaseTensor) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors that a parameter is stored as, in order."""
    before, brace, rest = place.name.partition("{")
    if not brace:
        return {place.name: place.shape}
    letters, _, after = rest.partition("}")
    length, *others = place.shape
    names = [before + letter + after for letter in letters.split(",")]
    return {name: (length // len(names), *others) for name in names}


def _join_parts(place: ReleaseTensor, tensors: Tensors) -> StoredTensor:
    parts = [tensors[name] for name in _parts(place)]
    if len(parts) == 1:
        return parts[0]
    return StoredTensor(
        place.shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts])
    )


def _as_convolution(tensor: StoredTensor, shape: tuple[int, ...] | None) -> StoredTensor:
    """Reshapes a matrix to the equivalent 1x1 convolution, if `shape` is that of one."""
    if shape != (*tensor.shape, 1, 1):
        return tensor
    return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read().reshape(shape))


_CLIP_BLOCK: Table = {
    "qkv": ("self_attn.{q,k,v}_proj", {}),
    "out": ("self_attn.out_proj", {}),
    r"ln_(\d)": (r"layer_norm\1", {}),
    "mlp_in": ("mlp.fc1", {}),
    "mlp_out": ("mlp.fc2", {}),
}
_CLIP_TOWER: Table = {
    r"block_(\d+)": (r"encoder.layers.\1", _CLIP_BLOCK),
    "positional_embedding": ("embeddings.position_embedding.weight", {}),
}
_TRANSFORMERS: Mapping[str, Table] = {
    "text_encoder": {
        **_CLIP_TOWER,
        "token_embedding": ("embeddings.token_embedding.weight", {}),
        "ln_final": ("final_layer_norm", {}),
    },
    "image_encoder": {
        **_CLIP_TOWER,
        "class_embedding": ("embeddings.class_embedding", {}),
        "patch_embed": ("embeddings.patch_embedding", {}),
        "ln_pre": ("pre_layrnorm", {}),  # sic
    },
}

# Older files have other names for the parts of attention.
_DIFFUSERS_ALIASES = (
    (r"(attentions\.0)\.query\.", r"\1.to_q."),
    (r"(attentions\.0)\.key\.", r"\1.to_k."),
    (r"(attentions\.0)\.value\.", r"\1.to_v."),
    (r"(attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
)
_DIFFUSERS_BLOCK: Table = {"skip": ("conv_shortcut", {})}
_DIFFUSERS_ATTENTION: Table = {
    "norm": ("group_norm", {}),
    "query": ("to_q", {}),
    "key": ("to_k", {}),
    "value": ("to_v", {}),
    "out": ("to_out.0", {}),
}


def _diffusers_table(levels: int) -> Table:
    """Returns the table of diffusers, whose decoder numbers levels in the order they run.

    Our decoder numbers them as the encoder does.
    """
    ups = {}
    for level in range(levels):
        block = f"up_blocks.{levels - 1 - level}"
        ups[rf"up_{level}_block_(\d)"] = (rf"{block}.resnets.\1", _DIFFUSERS_BLOCK)
        ups[f"up_{level}_upsample"] = (f"{block}.upsamplers.0.conv", {})
    half: Table = {
        **ups,
        r"down_(\d)_block_(\d)": (r"down_blocks.\1.resnets.\2", _DIFFUSERS_BLOCK),
        r"down_(\d)_downsample": (r"down_blocks.\1.downsamplers.0.conv", {}),
        "mid": (
            "mid_block",
            {
                "block_1": ("resnets.0", {}),
                "block_2": ("resnets.1", {}),
                "attn": ("attentions.0", _DIFFUSERS_ATTENTION),
            },
        ),
        "norm_out": ("conv_norm_out", {}),
    }
    return {"(en|de)coder": (r"\1coder", half), "(post_)?quant": (r"\1quant_conv", {})}
