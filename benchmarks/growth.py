"""Measures how time and memory of a pass of the U-Net grow with frames, pixels and clips.

    python benchmarks/growth.py                    two minutes
    python benchmarks/growth.py --write_docs       with docs/images/performance_growth.svg

One of the three is varied at a time: frames 16, 32, 64; sides 1, 1.5 and 2 times as long; clips 1,
2, 4. Memory is what the compiled program needs besides its arguments. Each exponent is the slope
of a line fitted to the logarithms; 1 means linear growth.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing
from ml_collections import ConfigDict
from random_arguments import random_params, unet_shapes

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.config import load_config, matmul_precision, networks_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.training.throughput import product_flops

PLOT = Path(__file__).parent.parent / "docs" / "images" / "performance_growth.svg"

# Of what varies: how many times as much there is of it.
FACTORS: Mapping[str, tuple[float, ...]] = {
    "frames": (1, 2, 4),
    "pixels": (1, 2.25, 4),
    "clips": (1, 2, 4),
}
COLORS = {"frames": "#1f4e8c", "pixels": "#b03a2e", "clips": "#7f9f3f"}
QUANTITIES = {"seconds": "time", "bytes": "memory", "flops": "products"}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", default="demo", help="a name or a file")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each size")
    timing.add_outputs(parser)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    passes = {
        (kind, factor): compile_pass(config, kind, factor)
        for kind, factors in FACTORS.items()
        for factor in factors
        if factor > 1
    }
    smallest = compile_pass(config)
    # All take turns, so that each is compared with the smallest in the same minutes.
    runs = {"smallest": smallest.run} | {str(key): one.run for key, one in passes.items()}
    seconds = timing.alternate(runs, arguments.repeats)
    measured = []
    for kind, factors in FACTORS.items():
        for factor in factors:
            one = passes.get((kind, factor), smallest)
            taken = seconds.get(str((kind, factor)), seconds["smallest"])
            shown = {**one.shown, "seconds": median(taken)}
            measured.append(
                {"varied": kind, "factor": factor, "shown": shown, "all_seconds": taken}
            )
    slopes = exponents(measured)
    text = f"{timing.made_with()}\n\n{table(measured)}\n\n{exponent_table(slopes)}"
    timing.say(f"\n{text}")
    if arguments.json:
        made = {"made": timing.made_with(), "config": config.name}
        timing.write_json(arguments.json, {**made, "rows": measured, "exponents": slopes})
    if arguments.write_docs:
        timing.write_docs("growth", text)
        draw(measured, slopes)
    return 0


class Pass(NamedTuple):
    """A compiled pass of the U-Net: its inputs, what it needs, and a function that runs it."""

    shown: dict[str, Any]
    run: Callable[[], object]


def compile_pass(config: ConfigDict, kind: str = "clips", factor: float = 1) -> Pass:
    """Compiles and warms up one pass with `factor` times as much of one kind."""
    config = config.copy_and_resolve_references()
    size, clips = config.sampling, 1
    match kind:
        case "frames":
            size.num_frames = round(size.num_frames * factor)
        case "pixels":
            size.height, size.width = (
                round(side * factor**0.5) for side in (size.height, size.width)
            )
        case "clips":
            clips = round(factor)
    mesh = sharding.mesh_of(config)
    network = networks_of(config, choose_attention(mesh)).unet
    draw = np.random.default_rng(0).standard_normal
    inputs = tuple(draw((clips, *one.shape[1:]), np.float32) for one in unet_shapes(config))
    with matmul_precision(config), sharding.use_mesh(mesh):
        params = random_params(abstract_models(networks_of(config))["unet"])
        arguments = sharding.replicate(({"params": params}, *inputs), mesh)
        traced = jax.jit(network.apply).trace(*arguments)
        compiled = traced.lower().compile()

        def run() -> jax.Array:
            return jax.block_until_ready(compiled(*arguments))

        run()
        flops = product_flops(jax.jit(networks_of(config).unet.apply).trace(*arguments).jaxpr)
    memory: Any = compiled.memory_analysis()
    shown = {
        "frames": size.num_frames,
        "height": size.height,
        "width": size.width,
        "clips": clips,
        "bytes": memory.temp_size_in_bytes,
        "flops": flops,
    }
    timing.say(", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
    return Pass(shown, run)


def exponents(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns, for each kind that varies, the slopes of log(quantity) against log(factor)."""
    found: dict[str, dict[str, float]] = {}
    for kind in FACTORS:
        rows = [row for row in measured if row["varied"] == kind]
        factors = np.log([row["factor"] for row in rows])
        found[kind] = {
            quantity: float(
                np.polyfit(factors, np.log([row["shown"][quantity] for row in rows]), 1)[0]
            )
            for quantity in QUANTITIES
        }
    return found


def table(measured: list[dict[str, Any]]) -> str:
    """Returns the table of all sizes in Markdown."""
    rows = [
        [
            row["varied"],
            str(row["shown"]["clips"]),
            str(row["shown"]["frames"]),
            f"{row['shown']['height']}x{row['shown']['width']}",
            f"{row['shown']['seconds']:.3g}",
            f"{row['shown']['bytes'] / 2**20:.0f}",
            f"{row['shown']['flops'] / 1e9:.1f}",
        ]
        for row in measured
    ]
    columns = ["varied", "clips", "frames", "size", "seconds", "memory, MiB", "products, GFLOP"]
    return timing.markdown(columns, rows)


def exponent_table(slopes: dict[str, dict[str, float]]) -> str:
    """Returns the table of exponents in Markdown."""
    rows = [
        [kind, *(f"{found[quantity]:.2f}" for quantity in QUANTITIES)]
        for kind, found in slopes.items()
    ]
    return timing.markdown(["exponent of", *QUANTITIES.values()], rows)


def draw(measured: list[dict[str, Any]], slopes: dict[str, dict[str, float]]) -> None:
    """Draws time and memory against each kind, as multiples of the smallest, on log scales."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
    for axes, quantity in zip(panels, ("seconds", "bytes"), strict=True):
        axes.plot([1, 4], [1, 4], color="#888888", linestyle="--", linewidth=1, label="linear")
        for kind in FACTORS:
            rows = [row for row in measured if row["varied"] == kind]
            values = [row["shown"][quantity] / rows[0]["shown"][quantity] for row in rows]
            axes.plot(
                [row["factor"] for row in rows],
                values,
                color=COLORS[kind],
                marker="o",
                markersize=4,
                linewidth=2,
                label=f"{kind}, exponent {slopes[kind][quantity]:.2f}",
            )
        ticks = [1, 2, 4, 8]
        axes.set(xscale="log", yscale="log", xlabel="times as much", title=QUANTITIES[quantity])
        axes.set_xticks(ticks[:3], [str(tick) for tick in ticks[:3]])
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    panels[0].set_ylabel("times the smallest")
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
