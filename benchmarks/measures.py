"""How far results are apart: from the release's, and in bfloat16 from float32, layer by layer.

Networks run without `jit` here, one operation at a time. In bfloat16 every operation then rounds
its result, where a compiler may keep more digits; and no more than one layer's memory is held
beside the weights.
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
        error: Of float32 from the golden numbers, as `relative_error`.
        target: The most that `error` may be.
        psnr: Of bfloat16 against float32, in dB.
        worst_layer: The layer that costs bfloat16 most, with its own dB.
        seconds: Wall time of all it took.
        memory: Most bytes used on the way.
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
        """Whether the target is met, which NaN never does."""
        return self.error <= self.target


class Case(NamedTuple):
    """One call of a network, and what the release answers.

    Attributes:
        section: The network, as `Models` names it.
        inputs: What it is called with.
        golden: The release's output; of tokens, every n-th may be enough.
        method: What is called.
        blocks: The release's output of the network's blocks by name, for the first clip.
    """

    section: str
    inputs: tuple[ArrayLike, ...]
    golden: np.ndarray
    method: str | None = None
    blocks: Mapping[str, np.ndarray] = {}


def relative_error(ours: ArrayLike, golden: ArrayLike) -> float:
    """Returns max|ours - golden| / max|golden|; NaN where ours has a NaN.

    Raises:
        ValueError: If the shapes differ.
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
        name: Of the network in the table.
        case: The call.
        config: Of the model.
        params: Of this network.
        target: The most that an error may be.

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
    """The network that computes in `dtype`; its parameters stay as they are."""
    config = config.copy_and_resolve_references()
    config.precision.dtype = dtype
    models: Models = networks_of(config)
    return getattr(models, section)


def _run(network: nn.Module, params: PyTree, case: Case) -> tuple[np.ndarray, dict[str, Any]]:
    """The network's output, and that of those of its blocks that have golden numbers."""
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
    """Notes what bfloat16 costs a layer by itself, given the inputs that it has in float32."""
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
    """Our output with the axes of `golden`, and of its tokens those that `golden` has."""
    tokens = ours.reshape(len(ours), -1, *golden.shape[2:])
    return tokens[:, :: math.ceil(tokens.shape[1] / golden.shape[1])]
