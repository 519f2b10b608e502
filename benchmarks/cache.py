"""Compares training from videos with training from a latent cache: bytes, clips/s and arithmetic.

    python benchmarks/cache.py           a few minutes
    python benchmarks/cache.py --quick   few clips and a smaller step, to see that it works

The first table is for clips of 16 frames at 320x512, from H.264 files of 640x360 and from caches
with the shapes of the released 512 model. The numbers in these caches are random, since nothing
here depends on them. float16 takes as much space as bfloat16. Each kind is read by a separate
process, in turns, in one thread; its processor time and the bytes that it requests from the system
are counted.

The second table is for compiled training steps. "Products" are the operations of matrix products
and convolutions, counted in the program; "XLA" is the compiler's own count of all operations. The
exit status is 1 unless exactly the operations of the cached networks are saved.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from loader import FILES, SECONDS, make_file
from ml_collections import ConfigDict
from timing import made_with, say

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.config import load_config, networks_of, settings_of
from dynamicrafter_jax.data.cache.clips import CachedExamples
from dynamicrafter_jax.data.cache.format import DTYPES, FORMAT_VERSION, NETWORKS, Recipe, finish
from dynamicrafter_jax.data.cache.writer import prepare, write_shards
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.draws import ClipSettings
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.training import inputs
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.optimizer import make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state
from dynamicrafter_jax.training.step import make_train_step
from dynamicrafter_jax.training.throughput import product_flops
from dynamicrafter_jax.weights.load import abstract_params

SHAPES = {"moments": (40, 64, 8), "text": (77, 1024), "vision": (257, 1280)}
VIDEOS = 4

# What is cached, in the order in which the tables add it.
KINDS: dict[str, tuple[str, ...]] = {
    "videos": (),
    "moments": ("moments",),
    "moments, text": ("moments", "text"),
    "moments, text, vision": ("moments", "text", "vision"),
}


class RandomNumbers:
    """Stands in for the networks, with any shapes and without delay."""

    batch_size = 32

    def __init__(self, kinds: Sequence[str], dtype: str) -> None:
        draw = np.random.default_rng(0).standard_normal
        self._drawn = {
            kind: draw((self.batch_size, *SHAPES[kind]), np.float32).astype(DTYPES[dtype])
            for kind in kinds
        }

    def frames(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {kind: drawn for kind, drawn in self._drawn.items() if kind != "text"}

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        return self._drawn["text"][: len(captions)]

    def zero_image(self) -> np.ndarray:
        return self._drawn["vision"][0]


def main() -> int:
    """Prints both tables and returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare training from videos and from a cache.")
    parser.add_argument("--quick", action="store_true", help="few clips, and a smaller step")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    say(f"{made_with()}\n")
    with tempfile.TemporaryDirectory() as folder:
        dtypes = ("bfloat16",) if quick else ("float32", "bfloat16")
        compare_loading(Path(folder), dtypes, *((4, 1) if quick else (32, 5)))
    say("")
    exact = compare_steps(quick)
    return 0 if exact else 1


def compare_loading(folder: Path, dtypes: Sequence[str], num_clips: int, repeats: int) -> None:
    """Prints the table of bytes and clips/s, for `VIDEOS` copies of one video."""
    videos = folder / "videos"
    videos.mkdir()
    original = Path(make_file(folder, FILES[0]))
    for i in range(VIDEOS):
        os.link(original, videos / f"{i}.mp4")
        (videos / f"{i}.txt").write_text(f"a view that wanders over photographs, number {i}")
    places = {"H.264 files": (os.fspath(videos), original.stat().st_size)}
    for dtype in dtypes:
        for name, kinds in list(KINDS.items())[1:]:
            place = folder / f"{dtype} {name}"
            made = make_cache(place, os.fspath(videos), kinds, dtype)
            places[f"cache, {dtype}: {name}"] = (os.fspath(place), made // VIDEOS)
    pools = {
        name: ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=open_place, initargs=(place,)
        )
        for name, (place, _) in places.items()
    }
    results: dict[str, list[Reading]] = {name: [] for name in pools}
    for repeat in range(repeats):
        names = list(pools)
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(pools[name].submit(read_clips, num_clips).result())
    row(
        "source", f"on disk, a video of {SECONDS} s", "read for a clip", "given to a step",
        "clips/s a core", "faster than files by",
    )  # fmt: skip
    row(*["---"] * 6)
    rates = {name: num_clips / median(r.seconds for r in read) for name, read in results.items()}
    for name, (_, size) in places.items():
        read = results[name][0]
        row(
            name,
            megabytes(size),
            megabytes(read.read / num_clips) if read.read else "",
            megabytes(read.given / num_clips),
            f"{rates[name]:.1f}",
            f"{rates[name] / rates['H.264 files']:.1f}",
        )
    for pool in pools.values():
        pool.shutdown()


def make_cache(folder: Path, videos: str, kinds: Sequence[str], dtype: str) -> int:
    """Writes a cache of random numbers; returns its bytes."""
    source, settings = open_source(videos), clip_settings()
    recipe = Recipe(
        format_version=FORMAT_VERSION,
        num_videos=len(source),
        videos_per_shard=VIDEOS,
        height=settings.height,
        width=settings.width,
        dtype=dtype,
        shapes={kind: SHAPES[kind] for kind in kinds},
        networks={},
        precision={},
        weights={},
        source={"source": videos, "split": "train"},
    )
    prepare(folder, recipe)
    numbers = RandomNumbers(kinds, dtype)
    write_shards(folder, recipe, source, numbers, [0], threads=2, watch=lambda *_: None)
    finish(folder, recipe)
    return sum(file.stat().st_size for file in folder.iterdir())


class Reading(NamedTuple):
    """Processor time, bytes requested from the system (0 if unknown) and bytes of arrays."""

    seconds: float
    read: int
    given: int


_opened: dict[str, VideoExamples | CachedExamples] = {}


def open_place(place: str) -> None:
    """Opens videos or a cache; runs in a separate process."""
    warnings.simplefilter("ignore")
    if (Path(place) / "cache.json").exists():
        _opened["examples"] = CachedExamples(place, clip_settings(), 0)
    else:
        _opened["examples"] = VideoExamples(open_source(place), clip_settings(), 0)
    read_clips(1)


def read_clips(count: int) -> Reading:
    """Reads clips, and checks that they are complete."""
    examples = _opened["examples"]
    before, start = bytes_read(), time.process_time()
    given = 0
    for index in range(count):
        example = examples(index)
        assert example["weight"] == 1, example["problem"]
        given += sum(values.nbytes for values in example.values())
    return Reading(time.process_time() - start, bytes_read() - before, given)


def bytes_read() -> int:
    """Returns how many bytes this process has read, from disk or from memory; 0 if unknown."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def clip_settings() -> ClipSettings:
    return ClipSettings.from_config(load_config("finetune_512"))


def compare_steps(quick: bool) -> bool:
    """Prints the table of steps; returns whether exactly the cached networks' work is saved."""
    row(
        "model",
        "read from",
        "products",
        "less by",
        "networks left out",
        "XLA",
        "less by",
        "their XLA",
    )
    row(*["---"] * 8)
    demo = load_config("demo")
    if quick:
        demo.sampling.num_frames = 2
        demo.unet.channel_mult = (1,)
    exact = compare_config(demo, compiled=True)
    if not quick:
        exact &= compare_config(load_config("finetune_512"), compiled=False)
    return exact


def compare_config(config: ConfigDict, *, compiled: bool) -> bool:
    """Prints the rows of a config, for one clip; `compiled` adds the compiler's count."""
    # XLA counts the body of a loop once: all frames are encoded at once, and there is no loop.
    config.sampling.vae_frames = config.sampling.num_frames
    train = {"batch_size": 1, "accumulation": 1, "remat": "none", "ema_decay": 0.0}
    settings = settings_of(TrainSettings, "train", config.train, **train)
    mesh, models, boxed = sharding.make_mesh(1), networks_of(config), abstract_params(config)
    optimizer = make_optimizer(settings)
    state = abstract_state(boxed, optimizer, settings, mesh)
    schedule = make_schedule(**config.diffusion.to_dict())
    step = make_train_step(
        make_objective(settings, models, schedule, config.sampling.vae_frames),
        optimizer,
        accumulation=1,
        ema_decay=0.0,
    )
    batch = abstract_batch(config, ())
    image = jax.ShapeDtypeStruct((1, config.sampling.height, config.sampling.width, 3), jnp.float32)
    alone = {
        "moments": (
            lambda p, rows: inputs.posteriors(models, p, rows, config.sampling.vae_frames), batch
        ),
        "text": (functools.partial(conditioning.text_context, models), batch.ids),
        "vision": (functools.partial(conditioning.image_tokens, models), image),
    }  # fmt: skip
    exact, before = True, (0, 0.0)
    with sharding.use_mesh(mesh):
        for name, kinds in KINDS.items():
            rows = abstract_batch(config, kinds)
            rng = jax.eval_shape(lambda: jax.random.key(0))
            counted = count(step, (state, rows, rng), compiled)
            cells = [config.name, name, giga(counted[0])]
            if kinds:
                function, argument = alone[kinds[-1]]
                left_out = count(function, (state.frozen, argument), compiled)
                exact &= before[0] - counted[0] == left_out[0]
                cells += [
                    giga(before[0] - counted[0]),
                    f"{NETWORKS[kinds[-1]]} {giga(left_out[0])}",
                ]
                cells += [giga(counted[1]), giga(before[1] - counted[1]), giga(left_out[1])]
            else:
                cells += ["", "", giga(counted[1]), "", ""]
            row(*(cell if compiled or i < 5 else "" for i, cell in enumerate(cells)))
            before = counted
    return exact


def count(function: Any, arguments: tuple[Any, ...], compiled: bool) -> tuple[int, float]:
    """Returns a program's operations: those of its products, and all of them by XLA's count."""
    traced = jax.jit(function).trace(*arguments)
    flops = 0.0
    if compiled:
        costs: Any = traced.lower().compile().cost_analysis()
        flops = float(costs["flops"])
    return product_flops(traced.jaxpr), flops


def abstract_batch(config: ConfigDict, kinds: Sequence[str]) -> Batch:
    """Returns the shapes of a batch of one clip, with `kinds` from a cache."""
    size, length = config.sampling, config.text_encoder.context_length
    side = networks_of(config).vae.downsampling
    patches = (config.image_encoder.image_size // config.image_encoder.patch_size) ** 2
    latent = (size.height // side, size.width // side, 2 * config.vae.z_channels)
    shapes: dict[str, PyTree] = {
        "sample_index": ((), jnp.uint32),
        "weight": ((), jnp.float32),
        "fs": ((), jnp.float32),
        "frame": ((), jnp.int32),
        "keep_image": ((), jnp.float32),
        "ends": ((), jnp.bool_),
    }
    if "text" in kinds:
        shapes["text"] = (length, config.text_encoder.width), jnp.float32
    else:
        shapes["ids"] = (length,), jnp.int32
    if "moments" in kinds:
        shapes["moments"] = (size.num_frames, *latent), jnp.float32
    else:
        shapes["video"] = (size.num_frames, size.height, size.width, 3), jnp.uint8
    if "vision" in kinds:
        shapes["vision"] = (patches + 1, config.image_encoder.width), jnp.float32
    elif "moments" in kinds:
        shapes["image"] = (size.height, size.width, 3), jnp.uint8
    rows: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, (shape, dtype) in shapes.items()
    }
    return Batch(**rows)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def giga(operations: float) -> str:
    return f"{operations / 1e9:,.2f} G"


def row(*cells: str) -> None:
    say(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
