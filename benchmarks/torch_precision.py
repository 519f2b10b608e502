"""Measures how far a pass of the U-Net in bfloat16 is from float32, in ours and in PyTorch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_layers
import torch_models
from measures import psnr
from ml_collections import ConfigDict
from random_arguments import random_params

from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.models import Common, abstract_models


def unet_psnr(config: ConfigDict, shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[float, float]:
    """Returns our PSNR and PyTorch's in dB, each against its own float32.

    Args:
        config: Config of the model, in float32.
        shapes: Shapes of the U-Net's inputs.
    """
    models = networks_of(config)
    params = random_params(abstract_models(models)["unet"])
    draw = np.random.default_rng(0).standard_normal
    x, timestep, text, image, fs = (draw(one.shape, np.float32) for one in shapes)
    timestep, fs = timestep * 0 + 501, fs * 0 + config.unet.default_fs

    def ours(dtype: Any, precision: str) -> np.ndarray:
        network = models.unet.clone(common=Common(dtype=dtype, param_dtype=dtype))
        rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        with jax.default_matmul_precision(precision):
            y = jax.jit(network.apply)({"params": rounded}, x, timestep, text, image, fs)
        return np.asarray(y, np.float32)

    our_psnr = psnr(ours(jnp.bfloat16, "default"), ours(jnp.float32, "highest"))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        network = torch_models.UNet(**config.unet.to_dict())
    network = torch_layers.load(network, params).to(device)
    inputs = [
        torch_layers.channels_first(x),
        *map(torch_layers.tensor, (timestep, text, image, fs)),
    ]

    def theirs(dtype: torch.dtype) -> np.ndarray:
        first, timestep, text, image, fs = (one.to(device) for one in inputs)
        rounded = (first.to(dtype), timestep, text.to(dtype), image.to(dtype), fs)
        return network.to(dtype)(*rounded).float().cpu().numpy()

    with torch.inference_mode():
        exact = theirs(torch.float32)
        return our_psnr, psnr(theirs(torch.bfloat16), exact)
