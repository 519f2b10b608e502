"""How the PyTorch release names and lays out every tensor, and which tensors we don't use.

`release_tensors` walks our parameters and returns the name, shape and layout of each in the
release; the converter uses this table in both directions.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Float32, PyTree

from dynamicrafter_jax.diffusion.schedule import RESCALE_RAMP, make_schedule
from dynamicrafter_jax.models.layers import Parameter

# Section of our parameter tree -> prefix of the release's names.
PREFIXES = {
    "unet": "model.diffusion_model",
    "vae": "first_stage_model",
    "text_encoder": "cond_stage_model.model",
    "image_encoder": "embedder.model.visual",
    "projector": "image_proj_model",
}

# Sections that the release freezes, and that some published files leave out.
FROZEN_SECTIONS = ("vae", "text_encoder", "image_encoder")

# The tensors in release files that are not our parameters. `carried` ones are kept as they are, so
# that an export is a complete release file again; `rebuilt` ones follow from the config; `dropped`
# ones are constants that only some files hold. LAST is the text tower's last block.
UNUSED_TENSORS: Mapping[str, tuple[str, ...]] = {
    "carried": (
        "cond_stage_model.model.transformer.resblocks.LAST.ln_1.weight",
        "cond_stage_model.model.transformer.resblocks.LAST.ln_1.bias",
        "cond_stage_model.model.transformer.resblocks.LAST.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.LAST.attn.in_proj_bias",
        "cond_stage_model.model.transformer.resblocks.LAST.attn.out_proj.weight",
        "cond_stage_model.model.transformer.resblocks.LAST.attn.out_proj.bias",
        "cond_stage_model.model.transformer.resblocks.LAST.ln_2.weight",
        "cond_stage_model.model.transformer.resblocks.LAST.ln_2.bias",
        "cond_stage_model.model.transformer.resblocks.LAST.mlp.c_fc.weight",
        "cond_stage_model.model.transformer.resblocks.LAST.mlp.c_fc.bias",
        "cond_stage_model.model.transformer.resblocks.LAST.mlp.c_proj.weight",
        "cond_stage_model.model.transformer.resblocks.LAST.mlp.c_proj.bias",
        "cond_stage_model.model.text_projection",
        "cond_stage_model.model.logit_scale",
        "embedder.model.token_embedding.weight",
        "embedder.model.positional_embedding",
        "embedder.model.ln_final.weight",
        "embedder.model.ln_final.bias",
        "embedder.model.text_projection",
        "embedder.model.logit_scale",
        "embedder.model.visual.ln_post.weight",
        "embedder.model.visual.ln_post.bias",
        "embedder.model.visual.proj",
    ),
    "rebuilt": (  # by `schedule_buffers`
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "scale_arr",
    ),
    "dropped": (
        "cond_stage_model.model.attn_mask",
        "embedder.model.attn_mask",
    ),
}

# The 256 release's older name for the `fs` embedding, and the current one.
ALIASES = (("model.diffusion_model.framestride_embed.", "model.diffusion_model.fps_embedding."),)

# Our module names -> the release's, level by level. Keys are regular expressions; the first that
# matches a name wins, and a module without a row keeps its name.
Table = Mapping[str, tuple[str, Any]]

_KEEP: Table = {}
_PERCEPTRON: Table = {"in": ("0", _KEEP), "out": ("2", _KEEP)}
_TEMPORAL_BLOCK: Table = {
    r"norm(\d)": (r"conv\1.0", _KEEP),
    "conv1": ("conv1.2", _KEEP),  # the first has no dropout before it
    r"conv(\d)": (r"conv\1.3", _KEEP),
}
_RES_BLOCK: Table = {
    "norm1": ("in_layers.0", _KEEP),
    "conv1": ("in_layers.2", _KEEP),
    "emb": ("emb_layers.1", _KEEP),
    "norm2": ("out_layers.0", _KEEP),
    "conv2": ("out_layers.3", _KEEP),
    "skip": ("skip_connection", _KEEP),
    "temporal_conv": ("temopral_conv", _TEMPORAL_BLOCK),
}
_ATTENTION: Table = {
    "query": ("to_q", _KEEP),
    "(text_)?key": ("to_k", _KEEP),
    "(text_)?value": ("to_v", _KEEP),
    "image_key": ("to_k_ip", _KEEP),
    "image_value": ("to_v_ip", _KEEP),
    "out": ("to_out.0", _KEEP),
}
_FEED_FORWARD: Table = {"in": ("net.0.proj", _KEEP), "out": ("net.2", _KEEP)}
_TRANSFORMER: Table = {
    r"(attn\d)": (r"transformer_blocks.0.\1", _ATTENTION),
    r"(norm\d)": (r"transformer_blocks.0.\1", _KEEP),
    "ff": ("transformer_blocks.0.ff", _FEED_FORWARD),
}
_UNET_BLOCK: Table = {
    "res": ("0", _RES_BLOCK),
    "spatial": ("1", _TRANSFORMER),
    "temporal": ("2", _TRANSFORMER),
    "res_after": ("3", _RES_BLOCK),
    "downsample": ("0.op", _KEEP),
    "upsample": ("LAST.conv", _KEEP),  # follows two transformers, or none
}
_VAE_BLOCK: Table = {"skip": ("nin_shortcut", _KEEP)}
_VAE_HALF: Table = {
    r"(down|up)_(\d)_block_(\d)": (r"\1.\2.block.\3", _VAE_BLOCK),
    r"(down|up)_(\d)_(down|up)sample": (r"\1.\2.\3sample.conv", _KEEP),
    "mid": (
        "mid",
        {
            "attn": (
                "attn_1",
                {
                    "query": ("q", _KEEP),
                    "key": ("k", _KEEP),
                    "value": ("v", _KEEP),
                    "out": ("proj_out", _KEEP),
                },
            )
        },
    ),
}
_CLIP_BLOCK: Table = {
    "qkv": ("attn.in_proj_", _KEEP),
    "out": ("attn.out_proj", _KEEP),
    "mlp_in": ("mlp.c_fc", _KEEP),
    "mlp_out": ("mlp.c_proj", _KEEP),
}
_CLIP: Table = {
    r"block_(\d+)": (r"transformer.resblocks.\1", _CLIP_BLOCK),
    "patch_embed": ("conv1", _KEEP),
    "token_embedding": ("token_embedding.weight", _KEEP),
}
_SECTIONS: Mapping[str, Table] = {
    "unet": {
        "time_embed": ("time_embed", _PERCEPTRON),
        "fs_embed": ("fps_embedding", _PERCEPTRON),
        "input_0": ("input_blocks.0.0", _KEEP),
        "init_attn": ("init_attn.0", _TRANSFORMER),
        r"(input|output)_(\d+)": (r"\1_blocks.\2", _UNET_BLOCK),
        "middle": ("middle_block", _UNET_BLOCK),
        "out_norm": ("out.0", _KEEP),
        "out": ("out.2", _KEEP),
    },
    "vae": {
        "(en|de)coder": (r"\1coder", _VAE_HALF),
        "(post_)?quant": (r"\1quant_conv", _KEEP),
    },
    "text_encoder": _CLIP,
    "image_encoder": _CLIP,
    "projector": {
        r"attn_(\d+)": (
            r"layers.\1.0",
            {**_ATTENTION, "key_value": ("to_kv", _KEEP), "out": ("to_out", _KEEP)},
        ),
        r"ff_(\d+)": (
            r"layers.\1.1",
            {"norm": ("0", _KEEP), "in": ("1", _KEEP), "out": ("3", _KEEP)},
        ),
    },
}
_LEAVES = {"kernel": "weight", "scale": "weight"}


class Naming(NamedTuple):
    """How files of one kind name the parameters of some networks.

    Attributes:
        prefixes: Prefix of each network's names, without the dot; may be empty.
        tables: The table of each network.
    """

    prefixes: Mapping[str, str]
    tables: Mapping[str, Table]


RELEASE = Naming(PREFIXES, _SECTIONS)


@dataclasses.dataclass(frozen=True)
class ReleaseTensor:
    """One parameter as the release stores it.

    Attributes:
        name: Its name in the release.
        shape: Its shape in the release, (out, in, *kernel) for kernels.
        path: Its path in our tree, section first.
        our_shape: Its shape in our tree, (*kernel, *in, *out).
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    our_shape: tuple[int, ...]

    @property
    def _is_kernel(self) -> bool:
        return self.path[-1] == "kernel"

    def from_release(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor of `shape` in our layout (a view where possible)."""
        if self._is_kernel:
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        return tensor.reshape(self.our_shape)

    def to_release(self, array: np.ndarray) -> np.ndarray:
        """Returns one of our parameters in the release's layout (a view where possible)."""
        if not self._is_kernel:
            return array.reshape(self.shape)
        out, inputs, *kernel = self.shape
        kernel_axes = range(len(kernel))
        array = array.reshape(*kernel, inputs, out)
        return array.transpose(array.ndim - 1, array.ndim - 2, *kernel_axes)


def release_tensors(boxed: PyTree, naming: Naming = RELEASE) -> dict[str, ReleaseTensor]:
    """Returns every parameter's place in the release, by release name, without `adapters`.

    Args:
        boxed: Abstract parameters by section, with leaves boxed as `models.layers.Parameter`.
        naming: The names in the release, or in another kind of file with the same layouts.
    """
    found = {}
    in_release = {path: box for path, box in _by_path(boxed).items() if not box.adapter}
    for section, tree in traverse_util.unflatten_dict(in_release).items():
        for path, name, box in _walk(tree, naming.tables[section], naming.prefixes[section]):
            name, shape = name.removeprefix("."), _release_shape(path, box)
            found[name] = ReleaseTensor(name, shape, (section, *path), tuple(box.value.shape))
    return found


def adapters(boxed: PyTree) -> list[str]:
    """Returns the paths of the parameters that no release has, such as "unet/out/kernel".

    Args:
        boxed: As in `release_tensors`.
    """
    return ["/".join(path) for path, box in _by_path(boxed).items() if box.adapter]


def unused_tensors(text_layers: int) -> dict[str, str]:
    """Returns `carried`, `rebuilt` or `dropped` for each tensor that we don't use, by name.

    Args:
        text_layers: Number of blocks of the text tower; the last one is carried.
    """
    last = str(text_layers - 1)
    return {
        name.replace("LAST", last): fate for fate, names in UNUSED_TENSORS.items() for name in names
    }


def schedule_buffers(diffusion: Mapping[str, Any]) -> dict[str, Float32[np.ndarray, " _"]]:
    """Returns a release file's buffers for its noise schedule, by name.

    They are alpha_bar, functions of it, and the coefficients of the posterior q(x_{t-1} | x_t, x0)
    (arXiv 2006.11239, Eq. 6 and 7). `scale_arr` has `timesteps` more entries after its ramp, but
    only the first `timesteps` are ever read.

    Args:
        diffusion: The config section of that name.

    Raises:
        UserError: `make_schedule` refuses the section.
    """
    schedule = make_schedule(**diffusion)
    alpha_bar = schedule.alpha_bar
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    alpha = alpha_bar / previous
    beta, rest, rest_previous = 1 - alpha, 1 - alpha_bar, 1 - previous
    variance = beta * rest_previous / rest
    root_reciprocal = root_reciprocal_minus_1 = np.zeros_like(alpha_bar)
    if schedule.parameterization == "eps":  # with v, alpha_bar may end at 0: the release has zeros
        root_reciprocal = np.sqrt(1 / alpha_bar)
        root_reciprocal_minus_1 = np.sqrt(1 / alpha_bar - 1)
    buffers = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(rest),
        "log_one_minus_alphas_cumprod": np.log(rest),
        "sqrt_recip_alphas_cumprod": root_reciprocal,
        "sqrt_recipm1_alphas_cumprod": root_reciprocal_minus_1,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(previous) / rest,
        "posterior_mean_coef2": rest_previous * np.sqrt(alpha) / rest,
    }
    if diffusion["use_dynamic_rescale"]:
        base_scale = diffusion["base_scale"]
        ramp = np.linspace(1, base_scale, RESCALE_RAMP)
        buffers["scale_arr"] = np.concatenate([ramp, np.full(diffusion["timesteps"], base_scale)])
    return {name: table.astype(np.float32) for name, table in buffers.items()}


def _by_path(boxed: PyTree) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(boxed)


def _walk(
    tree: Mapping, table: Table, prefix: str, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Parameter]]:
    """Yields (our path, release name, box) of every leaf below `tree`."""
    for key, child in tree.items():
        name, below = _translate(key, table)
        name = f"{prefix}.{name.replace('LAST', str(len(tree) - 1))}"
        if isinstance(child, Parameter):
            name = f"{prefix}.{_LEAVES.get(key, _translate(key, table)[0])}"
            yield (*path, key), name.replace("in_proj_.", "in_proj_"), child
        else:
            yield from _walk(child, below, name, (*path, key))


def _translate(key: str, table: Table) -> tuple[str, Table]:
    for pattern, (template, below) in table.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(template), below
    return key, _KEEP


def _release_shape(path: tuple[str, ...], box: Parameter) -> tuple[int, ...]:
    """Returns a leaf's shape in the release: (out, in, *kernel) for our (*kernel, *in, *out)."""
    shape, names = box.value.shape, box.names
    if path == ("latents",):
        return (1, *shape)
    if path[-1] != "kernel":
        return (math.prod(shape),) if path[-1] == "bias" else shape
    if names[0] is None:  # convolutions; ours along time have one kernel axis, theirs three
        *kernel, inputs, out = shape
        return (out, inputs, *kernel, *((1, 1) if len(kernel) == 1 else ()))
    num_inputs = 2 if names[0] == "heads" else 1
    matrix = (math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs]))
    if names == ("channels_in", "channels_out"):
        return (*matrix, 1, 1)
    if path[0] == "init_attn" and path[1] in ("proj_in", "proj_out"):
        return (*matrix, 1)
    return matrix
