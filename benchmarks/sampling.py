r"""Times sampling, from image to decoded frames, with random weights.

    python benchmarks/sampling.py --config=demo
    python benchmarks/sampling.py --config=i2v_512 --json=512.json \
        --compare="python benchmarks/torch_sampling.py --config=i2v_512"

Fields of the config are overridden as usual: --config.sampling.steps=50. On an accelerator
everything is bfloat16, on a CPU the config decides; --dtype overrides this. No step is skipped, and
compilation is timed separately. Utilisation is the products of all passes of the U-Net over the
time of the whole clip, relative to the speed of a large matrix product on this device in this run.

--compare runs a command that does the same work, and compares with the number at the end of its
last line, in seconds per clip, or with the time it took if there is no number. --psnr samples again
in float32 with the same noise, and prints how far bfloat16 is from it, and the same for one pass of
the U-Net in ours and in PyTorch.
"""

import functools
import os
import re
import subprocess
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import flax.linen as nn
import jax
import timing
from absl import flags
from measures import psnr
from ml_collections import ConfigDict
from random_arguments import PROMPT, picture, random_model, unet_shapes

from dynamicrafter_jax import cli
from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.runtime.provenance import peak_memory
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training.throughput import product_flops

CONFIG = cli.define_config()
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "config", "float32", "bfloat16"],
    "Of parameters and computation; auto: bfloat16 on accelerators, else the config's.",
)
CLIPS = flags.DEFINE_integer("clips", 1, "Clips that are sampled at once.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls, after one that compiles.")
COMPARE = flags.DEFINE_string("compare", None, "Command that does the same otherwise.")
PSNR = flags.DEFINE_bool("psnr", False, "Compare bfloat16 with float32.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put the table into {timing.DOCUMENT}.")


def main(_: Sequence[str]) -> None:
    if CONFIG.value is None:
        raise UserError("--config is needed: a file or a name, as i2v_512")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    if COMPARE.value:  # leave memory for the other
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config = in_dtype(CONFIG.value, chosen_dtype(CONFIG.value, DTYPE.value))
    measured = measure(config, CLIPS.value, REPEATS.value)
    if COMPARE.value:
        theirs = run_command(COMPARE.value)
        measured |= {"compared_with": COMPARE.value, "their_seconds_a_clip": theirs}
        measured["ratio"] = measured["seconds_a_clip"] / theirs
    if PSNR.value:
        measured |= compare_precision(config)
    text = f"{timing.made_with()}\n\n{table(measured)}"
    timing.say(text)
    if JSON.value:
        timing.write_json(JSON.value, {"made": timing.made_with(), **measured})
    if WRITE_DOCS.value:
        timing.write_docs("sampling", text)


def chosen_dtype(config: ConfigDict, choice: str) -> str:
    """Returns the type that a value of --dtype means for a config on this machine."""
    if choice == "config" or (choice == "auto" and jax.default_backend() == "cpu"):
        return config.precision.dtype
    return "bfloat16" if choice == "auto" else choice


def in_dtype(config: ConfigDict, dtype: str) -> ConfigDict:
    """Returns the config with a type for parameters and computations."""
    config = config.copy_and_resolve_references()
    if dtype != config.precision.dtype:
        config.precision.update(dtype=dtype, param_dtype=dtype)
    if dtype == "bfloat16":
        config.precision.update(param_dtype=dtype, matmul="default")
    return config


def measure(config: ConfigDict, clips: int, repeats: int) -> dict[str, Any]:
    """Samples, and returns the measurements."""
    animate = random_model(config)
    settings = SamplingSettings.from_config(config.sampling)
    image, steps = picture(config), animate.sampler.num_steps(settings)
    sample = functools.partial(animate.sample, image, PROMPT, num_samples=clips)

    compiled = timing.seconds(sample)
    seconds = [timing.seconds(sample) for _ in range(repeats)]
    stages = time_stages(sample)
    memory = peak_memory()
    total = median(seconds)
    with animate.sampler.in_force():
        peak = timing.matmul_peak(config.precision.dtype)
    flops = clips * steps * settings.num_passes * unet_flops(config)
    return {
        "config": config.name,
        "height": settings.height,
        "width": settings.width,
        "frames": settings.num_frames,
        "clips": clips,
        "steps": steps,
        "passes_a_step": settings.num_passes,
        "dtype": config.precision.dtype,
        "devices": animate.sampler.mesh.size,
        "device": jax.devices()[0].device_kind,
        "compile_seconds": compiled - total,
        "seconds": seconds,
        "seconds_a_clip": total / clips,
        **stages,
        "peak_memory_gib": memory / 2**30,
        "memory": timing.memory_kind(),
        **timing.utilisation(flops, total, peak, animate.sampler.mesh.size),
    }


def time_stages(sample: functools.partial) -> dict[str, float]:
    """Samples again with a progress callback; returns the seconds of a step and of decoding."""
    moments: dict[tuple[str, int], float] = {}

    def watch(stage: str, done: int, total: int) -> None:
        moments[stage, done] = time.perf_counter()

    sample(progress=watch)
    steps = max(done for stage, done in moments if stage == "denoise")
    first, last = moments["denoise", 1], moments["denoise", steps]
    step = (last - first) / (steps - 1) if steps > 1 else first - moments["compile", 2]
    return {
        "step_seconds": step,
        "decode_seconds": moments["decode", 1] - last,
    }


def unet_flops(config: ConfigDict) -> int:
    """Returns the operations of the products in one pass of the U-Net, for one clip."""
    models = networks_of(config)
    params = nn.meta.unbox(abstract_models(models)["unet"])
    traced = jax.jit(models.unet.apply).trace({"params": params}, *unet_shapes(config))
    return product_flops(traced.jaxpr)


def run_command(command: str) -> float:
    """Runs a command; returns the number at the end of its last line, or else its time.

    Raises:
        UserError: The command fails.
    """
    start = time.perf_counter()
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"the command of --compare ended with status {done.returncode}: {command}")
    lines = done.stdout.strip().splitlines()
    number = re.search(r"(\d+\.?\d*(?:e-?\d+)?)\D*$", lines[-1]) if lines else None
    return float(number[1]) if number else took


def compare_precision(config: ConfigDict) -> dict[str, float]:
    """Returns how close bfloat16 comes to float32, in dB: frames, and one pass of the U-Net."""
    from torch_precision import unet_psnr  # the one part that needs PyTorch

    exact, rough = (in_dtype(config, dtype) for dtype in ("float32", "bfloat16"))
    exact.precision.matmul = "highest"
    video = [random_model(one).sample(picture(config), PROMPT).video for one in (exact, rough)]
    ours, theirs = unet_psnr(exact, unet_shapes(config))
    return {
        "frames_psnr_db": psnr(video[1], video[0]),
        "unet_psnr_db": ours,
        "torch_unet_psnr_db": theirs,
    }


def table(found: dict[str, Any]) -> str:
    """Returns the measurements in Markdown."""
    size = f"{found['frames']} frames of {found['height']}x{found['width']}"
    work = f"{found['steps']} steps of {found['passes_a_step']} passes"
    rows = [
        ["work", f"{found['config']}, {size}, {work}, {found['dtype']}, {found['clips']} at once"],
        ["device", f"{found['devices']} x {found['device']}"],
        ["seconds a clip", f"{found['seconds_a_clip']:.3g}"],
        ["seconds a step", f"{found['step_seconds']:.3g}"],
        ["seconds to decode", f"{found['decode_seconds']:.3g}"],
        ["compilation, apart", f"{found['compile_seconds']:.3g} s"],
        [f"peak memory {found['memory']}", f"{found['peak_memory_gib']:.2f} GiB"],
        *timing.utilisation_rows(found),
    ]
    if "ratio" in found:
        rows.append(["the other's seconds a clip", f"{found['their_seconds_a_clip']:.3g}"])
        rows.append(["ratio, ours to the other's", f"{found['ratio']:.2f}"])
    if "frames_psnr_db" in found:
        rows.append(["bfloat16 frames", f"{found['frames_psnr_db']:.1f} dB"])
        both = f"{found['unet_psnr_db']:.1f} dB, PyTorch {found['torch_unet_psnr_db']:.1f} dB"
        rows.append(["bfloat16 U-Net pass", both])
    return timing.markdown(["what", "measured"], rows)


if __name__ == "__main__":
    cli.run(main)
