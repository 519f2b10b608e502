"""Times the U-Net, the VAE's decoder and their parts, in ours and in plain PyTorch, on a CPU.

    python benchmarks/networks.py                          the tiny model, a minute
    python benchmarks/networks.py --configs i2v_256        full size: minutes, and 13 GB of memory
    python benchmarks/networks.py --configs i2v_256 --frames=4

Both compute with the same random parameters and inputs in float32, and must agree before they are
timed. Ours is compiled as for sampling. They take turns in one process. The medians, their ratio
and the ratio of the fastest turns are printed; if the two ratios differ much, something else was
running. The exit status is 1 if a U-Net takes more than twice PyTorch's time.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import numpy as np
import timing
import torch
import torch_layers
import torch_models
from jaxtyping import PyTree
from ml_collections import ConfigDict
from random_arguments import random_params

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.config import load_config, matmul_precision, networks_of
from dynamicrafter_jax.models import blocks, layers, transformers
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.sampling.stages import latent_shape

TINY = Path(__file__).parent.parent / "tests" / "configs" / "tiny_v.py"

TARGET = 2.0  # times PyTorch's seconds, for a U-Net
TOLERANCE = 1e-4  # of max|theirs|


class Case(NamedTuple):
    """A network or a part of one, and the same in PyTorch.

    Attributes:
        name: Name in the table.
        ours: The Flax module.
        theirs: Function that builds the PyTorch module.
        inputs: Inputs of ours.
        their_inputs: Inputs of theirs.
        method: The method of ours to call.
    """

    name: str
    ours: nn.Module
    theirs: Callable[[], torch.nn.Module]
    inputs: tuple[Any, ...]
    their_inputs: tuple[Any, ...]
    method: str | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=[str(TINY)], help="names or files")
    parser.add_argument("--frames", type=int, help="of a clip, in place of the config's")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    parser.add_argument("--only", nargs="+", help="names of the rows to make")
    parser.add_argument("--threads", type=int, help="of each; by default one a core")
    timing.add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.threads:
        use_threads(arguments.threads)
    if os.getloadavg()[0] > 0.5:
        timing.say("Something else is running. PyTorch's threads suffer most; try --threads=1.")
    measured = []
    for name in arguments.configs:
        config = load_config(name)
        if arguments.frames:
            config.sampling.num_frames = arguments.frames
        for case in cases(config):
            if arguments.only and case.name not in arguments.only:
                continue
            found = measure(config, case, arguments.repeats)
            timing.say(line(found))
            measured.append(found)
    threads = f"Threads of each: {torch.get_num_threads()}"
    text = f"{timing.made_with('torch')} {threads}.\n\n{table(measured)}"
    timing.say(f"\n{text}")
    if arguments.json:
        timing.write_json(arguments.json, {"made": timing.made_with("torch"), "rows": measured})
    if arguments.write_docs:
        timing.write_docs("networks", text)
    missed = [row for row in measured if row["name"] == "U-Net" and row["ratio"] > TARGET]
    return 1 if missed else 0


def use_threads(count: int) -> None:
    """Limits both to the same number of cores, before either starts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])
    torch.set_num_threads(count)


def cases(config: ConfigDict) -> list[Case]:
    """Returns a config's networks and the parts of its U-Net's first level, for one clip."""
    models = networks_of(config, choose_attention(sharding.mesh_of(config)))
    net, vae = models.unet, models.vae
    t, h, w, z = latent_shape(models, SamplingSettings.from_config(config.sampling))
    width, head_width = net.model_channels, net.num_head_channels
    heads, learnable = width // head_width, net.image_cross_attention_scale_learnable
    draw = np.random.default_rng(0).standard_normal
    clip, x, emb, text, image, latent = (
        draw(shape, np.float32)
        for shape in (
            (1, t, h, w, net.in_channels),
            (1, t, h, w, width),
            (1, 4 * width),
            (1, config.text_encoder.context_length, net.context_dim),
            (1, t, config.projector.num_queries, net.context_dim),
            (1, h, w, z),
        )
    )
    timestep, fs = np.asarray([501], np.int32), np.asarray([net.default_fs], np.float32)
    first, tensor = torch_layers.channels_first, torch_layers.tensor
    context = (tensor(text), tensor(image))
    return [
        Case(
            "res-block",
            blocks.ResBlock(width, common=net.common),
            functools.partial(torch_models.ResBlock, width, width, 4 * width),
            (x, emb),
            (first(x), tensor(emb)),
        ),
        Case(
            "spatial transformer",
            transformers.SpatialTransformer(heads, head_width, learnable, common=net.common),
            functools.partial(
                torch_layers.SpatialTransformer,
                *(width, heads, head_width, net.context_dim, learnable),
            ),
            (x, text, image),
            (first(x), *context),
        ),
        Case(
            "temporal transformer",
            transformers.TemporalTransformer(heads, head_width, common=net.common),
            functools.partial(torch_layers.TemporalTransformer, width, heads, head_width),
            (x,),
            (first(x), 1),
        ),
        Case(
            "VAE decoder, a frame",
            vae,
            functools.partial(torch_models.VAEDecoder, **config.vae.to_dict()),
            (latent,),
            (first(latent),),
            method="decode",
        ),
        Case(
            "U-Net",
            net,
            functools.partial(torch_models.UNet, **config.unet.to_dict()),
            (clip, timestep, text, image, fs),
            (first(clip), tensor(timestep), *context, tensor(fs)),
        ),
    ]


def measure(config: ConfigDict, case: Case, repeats: int) -> dict[str, Any]:
    """Compares and times a case; returns a row.

    Raises:
        SystemExit: If the results differ.
    """
    mesh = sharding.mesh_of(config)

    def apply(params: PyTree, *inputs: Any) -> Any:
        return case.ours.apply({"params": params}, *inputs, method=case.method)

    with (
        matmul_precision(config),
        sharding.use_mesh(mesh),
        torch.inference_mode(),
    ):
        boxed = layers.abstract_params(case.ours, *case.inputs, method=case.method)
        params, inputs = sharding.replicate((random_params(boxed), case.inputs), mesh)
        with torch.device("meta"):
            theirs = case.theirs()
        torch_layers.load(theirs, params)
        program = Program(apply)

        def run_ours() -> jax.Array:
            return jax.block_until_ready(program(params, *inputs))

        def run_theirs() -> torch.Tensor:
            return theirs(*case.their_inputs)

        error = torch_layers.relative_error(run_theirs(), run_ours())
        if not error <= TOLERANCE:
            sys.exit(f"{config.name}, {case.name}: ours differs from PyTorch's by {error:.1e}")
        seconds = timing.alternate({"ours": run_ours, "torch": run_theirs}, repeats)
    ours, torchs = median(seconds["ours"]), median(seconds["torch"])
    return {
        "config": config.name,
        "frames": config.sampling.num_frames,
        "name": case.name,
        "error": error,
        "seconds": seconds,
        "ours": ours,
        "torch": torchs,
        "ratio": ours / torchs,
        "ratio_of_fastest": min(seconds["ours"]) / min(seconds["torch"]),
    }


def table(measured: list[dict[str, Any]]) -> str:
    """Returns the rows in Markdown."""
    columns = [
        "config",
        "frames",
        "what",
        "ours, s",
        "PyTorch, s",
        "ratio",
        "of fastest",
        "difference",
    ]
    rows = [
        [
            row["config"],
            str(row["frames"]),
            row["name"],
            f"{row['ours']:.3g}",
            f"{row['torch']:.3g}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_fastest']:.2f}",
            f"{row['error']:.0e}",
        ]
        for row in measured
    ]
    return timing.markdown(columns, rows)


def line(row: dict[str, Any]) -> str:
    """Returns a row as text, to print as soon as it is measured."""
    seconds = f"ours {row['ours']:.3g} s, PyTorch {row['torch']:.3g} s"
    ratios = f"ratio {row['ratio']:.2f}, of the fastest {row['ratio_of_fastest']:.2f}"
    return f"{row['config']}, {row['name']}: {seconds}, {ratios}"


if __name__ == "__main__":
    sys.exit(main())
