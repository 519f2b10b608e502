"""Measures the errors of results against the release, and of bfloat16 against float32, by layer.

Networks run without `jit` here, one operation at a time. So in bfloat16 every operation rounds its
result, while a compiler may keep more digits; and besides the weights, only one layer's memory is
held.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.module import InterceptorContext
from jaxtyping import PyTree
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.models import Models, autoencoder, clip, resampler, unet

DTYPES = ("float32", "bfloat16")

# Modules that pass their inputs on to others. What they call that is no container is a layer.
CONTAINERS = (
    *(unet.UNet, unet.UNetBlock, unet.Downsample),
    *(autoencoder.Autoencoder, autoencoder.Encoder, autoencoder.Decoder, autoencoder.Middle),
    *(clip.TextEncoder, clip.ImageEncoder, resampler.Projector),
)


class Row(NamedTuple):
    """One comparison.

    Attributes:
        name: What was compared.
        error: Error of float32 against the golden numbers (see `relative_error`).
        target: The largest `error` allowed.
        psnr: PSNR of bfloat16 against float32, in dB.
        worst_layer: The layer that loses most in bfloat16, with its own PSNR in dB.
        seconds: Wall time of the whole comparison.
        memory: Peak memory, in bytes.
    """

    name: str
    error: float
    target: float
    psnr: float | None = None
    worst_layer: str = ""
    seconds: float | None = None
    memory: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the target is met; never true for NaN."""
        return self.error <= self.target


class Case(NamedTuple):
    """A call of a network, and the release's result.

    Attributes:
        section: The network, by its name in `Models`.
        inputs: Arguments of the call.
        golden: The release's output; it may have only every n-th token.
        method: The method to call.
        blocks: The release's outputs of the network's blocks by name, for the first clip.
    """

    section: str
    inputs: tuple[ArrayLike, ...]
    golden: np.ndarray
    method: str | None = None
    blocks: Mapping[str, np.ndarray] = {}


def relative_error(ours: ArrayLike, golden: ArrayLike) -> float:
    """Returns max|ours - golden| / max|golden|; NaN if ours has a NaN.

    Raises:
        ValueError: The shapes differ.
    """
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape:
        raise ValueError(f"ours has shape {ours.shape}, but golden {golden.shape}")
    return float(np.abs(ours - golden).max() / np.abs(golden).max())


def psnr(rough: ArrayLike, exact: ArrayLike) -> float:
    """Returns 10 log10(peak^2 / mean squared error) in dB, where peak is max|exact|."""
    rough, exact = np.asarray(rough, np.float64), np.asarray(exact, np.float64)
    mean_squared_error = np.mean((rough - exact) ** 2)
    if mean_squared_error == 0:
        return math.inf
    return float(10 * np.log10(np.abs(exact).max() ** 2 / mean_squared_error))


def measure(
    name: str, case: Case, config: ConfigDict, params: PyTree, target: float
) -> tuple[list[Row], np.ndarray]:
    """Runs a network in float32 and in bfloat16 with the same weights.

    Args:
        name: Name of the network in the table.
        case: The call.
        config: Config of the model.
        params: Parameters of this network.
        target: The largest error allowed.

    Returns:
        A row for each block that has golden numbers, then one for the network; and its output.
    """
    exact, rough = (_network(config, case.section, dtype) for dtype in DTYPES)
    layers: dict[str, float] = {}
    with nn.intercept_methods(functools.partial(_compare_layer, layers)):
        ours, our_blocks = _run(exact, params, case)
    coarse, coarse_blocks = _run(rough, params, case)
    worst = min(layers, key=lambda layer: np.nan_to_num(layers[layer], nan=-np.inf))
    rows = [
        Row(
            f"{name}, {block}",
            relative_error(our_blocks[block][0], golden),
            target,
            psnr(coarse_blocks[block], our_blocks[block]),
        )
        for block, golden in case.blocks.items()
    ]
    error = relative_error(_like(case.golden, ours), case.golden)
    rows.append(Row(name, error, target, psnr(coarse, ours), f"{worst}, {layers[worst]:.1f} dB"))
    return rows, ours


def _network(config: ConfigDict, section: str, dtype: str) -> nn.Module:
    """Returns the network with computations in `dtype`; its parameters keep their type."""
    config = config.copy_and_resolve_references()
    config.precision.dtype = dtype
    models: Models = networks_of(config)
    return getattr(models, section)


def _run(network: nn.Module, params: PyTree, case: Case) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the network's output, and the outputs of the blocks that have golden numbers."""
    output, state = network.apply(
        {"params": params},
        *map(jnp.asarray, case.inputs),
        method=case.method,
        capture_intermediates=lambda module, _: module.name in case.blocks,
        mutable=["intermediates"],
    )
    captured: Any = state.get("intermediates")
    blocks = {name: captured[name]["__call__"][0] for name in case.blocks}
    return np.asarray(output, np.float32), blocks


def _compare_layer(
    found: dict[str, float],
    next_call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    """Records what a layer alone loses in bfloat16, given its inputs in float32."""
    output, layer = next_call(*args, **kwargs), context.module
    is_layer = isinstance(layer.parent, CONTAINERS) and not isinstance(layer, CONTAINERS)
    if is_layer and context.method_name == "__call__":
        rough = layer.clone(
            parent=None, common=dataclasses.replace(layer.common, dtype=jnp.bfloat16)
        )
        coarse: Any = rough.apply({"params": layer.variables["params"]}, *args, **kwargs)
        found[".".join(layer.path)] = psnr(coarse, output)
    return output


def _like(golden: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Returns our output with the axes of `golden`, and only the tokens that `golden` has."""
    tokens = ours.reshape(len(ours), -1, *golden.shape[2:])
    return tokens[:, :: math.ceil(tokens.shape[1] / golden.shape[1])]
