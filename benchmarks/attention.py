"""Compares attention kernels at the shapes of the released models, in one run.

    python benchmarks/attention.py                        256, the smallest, on any machine
    python benchmarks/attention.py --configs i2v_1024 --dtype bfloat16    for accelerators
    python benchmarks/attention.py --json attention.json

Times are medians of a forward pass for one clip; all kernels take turns. On a CPU, ratios are to
PyTorch's `scaled_dot_product_attention` if torch is installed, and otherwise to plain attention.
Plain attention is left out for shapes whose logits would not fit in memory.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternate, made_with, markdown, write_json

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import Kernels, choose_attention
from dynamicrafter_jax.config import load_config

# Logits that plain attention may hold, in bytes of float32.
_PLAIN_LOGITS = 2**32


class Shape(NamedTuple):
    """An attention of `tokens` queries to `keys`, for `entries` sequences; maybe along time."""

    name: str
    entries: int
    tokens: int
    keys: int
    heads: int
    width: int
    temporal: bool = False


def main() -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare the kernels of attention.")
    parser.add_argument("--configs", nargs="+", default=["i2v_256"], help="whose shapes to run")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=7, help="turns of each kernel")
    parser.add_argument("--json", help="write the measurements to this file")
    args = parser.parse_args()
    measured = [
        {"config": config, **shape._asdict(), "seconds": measure(shape, args.dtype, args.repeats)}
        for config in args.configs
        for shape in shapes_of(config)
    ]
    say(f"{made_with()} {args.dtype}.\n")
    say(markdown(*table(measured)))
    if args.json:
        write_json(args.json, {"dtype": args.dtype, "measured": measured})
    return 0


def shapes_of(name: str) -> Sequence[Shape]:
    """Returns the different attentions of a config, for one clip."""
    config = load_config(name)
    frames, width = config.sampling.num_frames, config.unet.num_head_channels
    h, w = (side // 8 for side in (config.sampling.height, config.sampling.width))
    text = config.text_encoder.context_length
    shapes = []
    for level, multiplier in enumerate(config.unet.channel_mult):
        tokens = (h >> level) * (w >> level)
        heads = config.unet.model_channels * multiplier // width
        at = f"U-Net level {level}"
        shapes += [
            Shape(f"{at}, frame", frames, tokens, tokens, heads, width),
            Shape(f"{at}, text", frames, tokens, text, heads, width),
            Shape(f"{at}, image", frames, tokens, 16, heads, width),
            Shape(f"{at}, time", tokens, frames, frames, heads, width, temporal=True),
        ]
    channels = config.vae.ch * config.vae.ch_mult[-1]
    return [*shapes, Shape("VAE, frame", 1, h * w, h * w, 1, channels)]


def measure(shape: Shape, dtype: str, repeats: int) -> dict[str, float]:
    """Returns the median seconds of each kernel."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal((shape.entries, length, shape.heads, shape.width), np.float32)
        for length in (shape.tokens, shape.keys, shape.keys)
    ]
    if shape.temporal:
        arrays = [np.ascontiguousarray(x.swapaxes(0, 1))[None] for x in arrays]
    on_device = [jnp.asarray(x, dtype) for x in arrays]
    functions = {
        name: compiled(shape, kernels, on_device) for name, kernels in kernels_of(shape).items()
    }
    if jax.default_backend() == "cpu" and (torch := pytorch(shape, arrays, dtype)):
        functions["torch"] = torch
    for function in functions.values():
        function()
    return {name: median(times) for name, times in alternate(functions, repeats).items()}


def kernels_of(shape: Shape) -> dict[str, Kernels]:
    """Returns the kernels that can run here, by name: plain, portable, and the chosen one."""
    mesh = sharding.make_mesh()
    kernels = {name: choose_attention(mesh, name) for name in ("plain", "chunked")}
    if 4 * shape.entries * shape.heads * shape.tokens * shape.keys > _PLAIN_LOGITS:
        del kernels["plain"]
    chosen = choose_attention(mesh)
    return kernels if chosen in kernels.values() else {**kernels, "chosen": chosen}


def compiled(shape: Shape, kernels: Kernels, arrays: Sequence[jax.Array]) -> Callable[[], object]:
    attend = jax.jit(kernels.temporal_attention if shape.temporal else kernels.attention)
    return lambda: jax.block_until_ready(attend(*arrays))


def pytorch(shape: Shape, arrays: Sequence[np.ndarray], dtype: str) -> Callable[[], object] | None:
    """Returns PyTorch's fused attention, in our order of axes; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    query, key, value = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays)
    attend = torch.nn.functional.scaled_dot_product_attention

    def within_frames() -> object:
        y = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return y.transpose(1, 2).contiguous()

    def along_time() -> object:
        pixels = (1, 2, 0, 3)
        y = attend(query[0].permute(pixels), key[0].permute(pixels), value[0].permute(pixels))
        return y.permute(2, 0, 1, 3).contiguous()

    return along_time if shape.temporal else within_frames


def table(measured: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows."""
    names = list(dict.fromkeys(name for row in measured for name in row["seconds"]))
    base = "torch" if "torch" in names else "plain" if "plain" in names else names[0]
    others = [name for name in names if name != base]
    rows = []
    for row in measured:
        seconds = row["seconds"]
        sizes = "entries", "tokens", "keys", "heads", "width"
        cells = [row["config"], row["name"], " x ".join(str(row[size]) for size in sizes)]
        cells.append(f"{1e3 * seconds[base]:.2f} ms" if base in seconds else "")
        for name in others:
            if name not in seconds:
                cells.append("")
            elif base in seconds:
                cells.append(f"{seconds[name] / seconds[base]:.2f}")
            else:
                cells.append(f"{1e3 * seconds[name]:.2f} ms")
        rows.append(cells)
    sizes = "entries x tokens x keys x heads x width"
    return ["config", "attention", sizes, base, *(f"{name} / {base}" for name in others)], rows


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
