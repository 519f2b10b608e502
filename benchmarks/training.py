r"""Times training steps, with random weights and clips.

    python benchmarks/training.py --config=demo --config.train.batch_size=1
    python benchmarks/training.py --config=finetune_512 --cached \
        --config.train.batch_size=1 --config.train.accumulation=1

Fields of the config are overridden as usual. --cached trains from the contents of a latent cache,
without VAE and towers. Compilation is timed separately. Utilisation counts the products of a step
that recomputes nothing, whatever train.remat is, relative to the speed of a large matrix product on
this device in this run.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import jax
import numpy as np
import timing
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from random_arguments import random_params

from dynamicrafter_jax import cli, sharding
from dynamicrafter_jax.config import matmul_precision, networks_of, settings_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.provenance import peak_memory
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.optimizer import make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import TrainState, abstract_state, create_state
from dynamicrafter_jax.training.step import TrainStep, compile_step, make_train_step
from dynamicrafter_jax.training.throughput import product_flops
from dynamicrafter_jax.weights.load import abstract_params

CONFIG = cli.define_config()
CACHED = flags.DEFINE_bool("cached", False, "Train from latents and tokens, not from frames.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps, after one that is not.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put the table into {timing.DOCUMENT}.")


def main(_: Sequence[str]) -> None:
    if CONFIG.value is None:
        raise UserError("--config is needed: a file or a name, as finetune_512")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    measured = measure(CONFIG.value, REPEATS.value, cached=CACHED.value)
    text = f"{timing.made_with()}\n\n{table(measured)}"
    timing.say(text)
    if JSON.value:
        timing.write_json(JSON.value, {"made": timing.made_with(), **measured})
    if WRITE_DOCS.value:
        timing.write_docs("training", text)


def measure(config: ConfigDict, repeats: int, *, cached: bool) -> dict[str, Any]:
    """Trains for a few steps, and returns the measurements."""
    settings = settings_of(TrainSettings, "train", config.train)
    mesh = sharding.mesh_of(config)
    sharding.local_rows(mesh, settings.batch_size // settings.accumulation)  # may refuse
    with matmul_precision(config), sharding.use_mesh(mesh):
        state = random_state(config, settings, mesh)
        batch = sharding.split_batch(random_batch(config, settings.batch_size, cached), mesh)
        rng = sharding.replicate(jax.random.key(0), mesh)
        compiled = []
        compile_seconds = timing.seconds(
            lambda: compiled.append(
                compile_step(make_step(config, settings), state, batch, rng, mesh)
            )
        )
        step, executed_flops = compiled[0]
        plain = make_step(config, settings, remat="none")
        flops = product_flops(jax.jit(plain).trace(state, batch, rng).jaxpr)

        def take() -> None:
            nonlocal state
            state, metrics = step(state, batch, rng)
            if not bool(jax.block_until_ready(metrics).finite):
                raise UserError("the loss is not finite: lower train.learning_rate")

        timing.seconds(take)
        seconds = [timing.seconds(take) for _ in range(repeats)]
        memory = peak_memory()
        peak = timing.matmul_peak(config.precision.dtype)
    size = config.sampling
    return {
        "config": config.name,
        "height": size.height,
        "width": size.width,
        "frames": size.num_frames,
        "batch_size": settings.batch_size,
        "accumulation": settings.accumulation,
        "remat": settings.remat,
        "cached": cached,
        "dtype": config.precision.dtype,
        "devices": mesh.size,
        "device": jax.devices()[0].device_kind,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "step_seconds": median(seconds),
        "clips_per_second": settings.batch_size / median(seconds),
        "executed_tflop": executed_flops / 1e12,
        "peak_memory_gib": memory / 2**30,
        "memory": timing.memory_kind(),
        **timing.utilisation(flops, median(seconds), peak, mesh.size),
    }


def make_step(config: ConfigDict, settings: TrainSettings, remat: str | None = None) -> TrainStep:
    """Returns the training step of `train.py`; `remat` overrides the setting."""
    models = networks_of(config)
    models = models._replace(unet=models.unet.clone(remat=remat or settings.remat))
    schedule = make_schedule(**config.diffusion.to_dict())
    return make_train_step(
        make_objective(settings, models, schedule, config.sampling.vae_frames),
        make_optimizer(settings),
        accumulation=settings.accumulation,
        ema_decay=settings.ema_decay,
    )


def random_state(config: ConfigDict, settings: TrainSettings, mesh: Mesh) -> TrainState:
    """Returns the state of a run that starts from random weights."""
    boxed, optimizer = abstract_params(config), make_optimizer(settings)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(random_params(boxed))
    }
    return create_state(abstract_state(boxed, optimizer, settings, mesh), leaves.pop, optimizer)


def random_batch(config: ConfigDict, clips: int, cached: bool) -> Batch:
    """Returns clips of noise, as videos or as a latent cache stores them."""
    size, tower = config.sampling, config.image_encoder
    side, length = networks_of(config).vae.downsampling, config.text_encoder.context_length
    rng = np.random.default_rng(0)
    some = config.data.frames
    frames = (clips, some or size.num_frames)
    common: dict[str, Any] = {
        "sample_index": np.arange(clips, dtype=np.uint32),
        "weight": np.ones(clips, np.float32),
        "fs": np.full(clips, size.fps, np.float32),
        "frame": np.zeros(clips, np.int32),
        "keep_image": np.ones(clips, np.float32),
        "ends": np.arange(clips) % 4 == 0,
    }
    if some:
        common["places"] = np.broadcast_to(np.arange(some, dtype=np.int32), frames)
    values: dict[str, Any]
    if not cached:
        video = rng.integers(0, 256, (*frames, size.height, size.width, 3), np.uint8)
        ids = rng.integers(0, config.text_encoder.vocab_size, (clips, length), np.int32)
        values = {"video": video, "ids": ids}
        return Batch(**common, **values)
    latent = (size.height // side, size.width // side, 2 * config.vae.z_channels)
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    values = {
        "moments": rng.standard_normal((*frames, *latent), np.float32),
        "text": rng.standard_normal((clips, length, config.text_encoder.width), np.float32),
        "vision": rng.standard_normal((clips, tokens, tower.width), np.float32),
    }
    return Batch(**common, **values)


def table(found: dict[str, Any]) -> str:
    """Returns the measurements in Markdown."""
    size = f"{found['frames']} frames of {found['height']}x{found['width']}"
    source = "a latent cache" if found["cached"] else "frames"
    batch = f"{found['batch_size']} clips in {found['accumulation']} parts"
    rows = [
        ["work", f"{found['config']}, {size}, {batch}, from {source}, {found['dtype']}"],
        ["device", f"{found['devices']} x {found['device']}"],
        ["seconds a step", f"{found['step_seconds']:.3g}"],
        ["clips a second", f"{found['clips_per_second']:.3g}"],
        ["compilation, apart", f"{found['compile_seconds']:.3g} s"],
        [f"peak memory {found['memory']}", f"{found['peak_memory_gib']:.2f} GiB"],
        *timing.utilisation_rows(found),
        [f"products, with remat={found['remat']}", f"{found['executed_tflop']:.4g} TFLOP"],
    ]
    return timing.markdown(["what", "measured"], rows)


if __name__ == "__main__":
    cli.run(main)
