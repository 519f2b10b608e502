r"""Writes a latent cache: the frozen networks' outputs, so that training need not compute them.

    python -m dynamicrafter_jax.data.cache --config=finetune_512 --output=DIRECTORY \
        --config.data.source=videos/ --config.init.checkpoint=model.ckpt [--text] [--vision]

To train on it, set `--config.data.source=DIRECTORY`. The cache holds the VAE's moments of all
frames, so any stride and start still works; with `--text` also the text tower's states of captions,
with `--vision` also the vision tower's tokens of all frames. Without `--vision`, training still
reads one frame per clip from the videos.

All devices are used. With several hosts, set up as for training, each writes its share of the
shards. The same command resumes a cache that is unfinished. `data.cache.format` describes the
folder.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dynamicrafter_jax import cli

# isort: split
import jax
from absl import flags
from tqdm import tqdm

from dynamicrafter_jax.data.cache.format import (
    DTYPES,
    FORMAT_VERSION,
    NETWORKS,
    Recipe,
    finish,
    index_name,
    network_sections,
)
from dynamicrafter_jax.data.cache.writer import missing_shards, prepare, write_shards
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.training.cache_encoder import NetworkEncoder, load_networks, local_mesh

_WAIT_SECONDS = 5.0
_TELL_SECONDS = 60.0


def define_flags() -> dict[str, flags.FlagHolder | cli.ConfigFlag]:
    """Defines the flags of the command line, which other entry points must not inherit."""
    return {
        "config": cli.define_config(),
        "output": flags.DEFINE_string("output", None, "Folder to write; may be remote."),
        "text": flags.DEFINE_bool("text", False, "Cache the text tower's states of captions."),
        "vision": flags.DEFINE_bool("vision", False, "Cache the vision tower's tokens of frames."),
        "dtype": flags.DEFINE_enum(
            "dtype", None, list(DTYPES), "Type to store; by default precision.dtype."
        ),
        "videos_per_shard": flags.DEFINE_integer("videos_per_shard", 64, "Videos in a shard."),
        "batch_size": flags.DEFINE_integer("batch_size", 8, "Frames per device encoded at once."),
    }


def main(
    holders: Mapping[str, flags.FlagHolder | cli.ConfigFlag],
    processes: cli.ProcessFlags,
    _: Sequence[str],
) -> None:
    """Writes the cache that the flags describe, and prints one line about it."""
    given = {name: holder.value for name, holder in holders.items()}
    with processes.joined():
        run(given, process=jax.process_index(), num_processes=jax.process_count())


def run(given: Mapping[str, Any], *, process: int = 0, num_processes: int = 1) -> None:
    """Writes this process's part of a cache, and prints one line about it.

    Args:
        given: The values of the flags of `define_flags`.
        process: Which process this is.
        num_processes: How many processes share the work; all must be given the same flags.

    Raises:
        UserError: A flag is missing or out of range, the videos or weights can't be used, or the
            folder holds something else or can't be written.
    """
    config, output = given["config"], given["output"]
    for name in ("config", "output"):
        if given[name] is None:
            raise UserError(f"no --{name}: see --help")
    for name in ("videos_per_shard", "batch_size"):
        if given[name] < 1:
            raise UserError(f"--{name} is {given[name]}: give 1 or more")
    kinds = [kind for kind in NETWORKS if kind == "moments" or given[kind]]
    files.check_writable(files.as_path(output) / index_name(0))
    source = open_source(config.data.source, videos=config.data.videos, split=config.data.split)
    mesh = local_mesh()
    params, weights = load_networks(config, [NETWORKS[kind] for kind in kinds], mesh)
    encoder = NetworkEncoder(
        config,
        params,
        mesh,
        dtype=given["dtype"] or config.precision.dtype,
        frames_per_device=given["batch_size"],
    )
    recipe = Recipe(
        format_version=FORMAT_VERSION,
        num_videos=len(source),
        videos_per_shard=given["videos_per_shard"],
        height=config.sampling.height,
        width=config.sampling.width,
        dtype=encoder.dtype,
        shapes=encoder.shapes(),
        networks=network_sections(config, kinds),
        precision=config.precision.to_dict(),
        weights=weights,
        source={"source": _lasting(config.data.source), "split": config.data.split},
    )
    prepare(output, recipe)
    shards = range(process, recipe.num_shards, num_processes)
    missing = missing_shards(output, recipe, source, shards)
    total = sum(len(recipe.items(shard)) for shard in missing)
    threads = max(1, config.data.workers)
    with contextlib.closing(ShardProgress(total)) as progress:
        write_shards(output, recipe, source, encoder, missing, threads=threads, watch=progress)
    _wait_for_others(output, recipe)
    totals = finish(output, recipe)
    print(
        f"{output}: {recipe.num_videos:,} videos, {totals['broken_videos']:,} of them broken, with "
        f"{totals['frames']:,} frames in {recipe.num_shards} shards; {len(missing)} shards written "
        f"now, {progress.speed}"
    )


class ShardProgress:
    """Shows the progress of writing on stderr: a bar, or a line now and then."""

    def __init__(self, total: int) -> None:
        """Starts the clock.

        Args:
            total: Videos to write.
        """
        self._total, self._videos, self._frames = total, 0, 0
        self._started = self._told = time.perf_counter()
        self._bar = tqdm(total=total, unit=" videos", file=sys.stderr, leave=False, disable=None)

    def __call__(self, videos: int, frames: int) -> None:
        """Adds to the videos and frames that were written."""
        self._videos += videos
        self._frames += frames
        self._bar.update(videos)
        now = time.perf_counter()
        if self._bar.disable and now - self._told >= _TELL_SECONDS:
            self._told = now
            sys.stderr.write(f"{self._videos:,} of {self._total:,} videos, {self.speed}\n")

    @property
    def speed(self) -> str:
        """Average speed since the start, as text."""
        seconds = time.perf_counter() - self._started
        return f"{self._videos / seconds:.3g} videos/s, {self._frames / seconds:.3g} frames/s"

    def close(self) -> None:
        """Clears the bar."""
        self._bar.close()


def _wait_for_others(output: str, recipe: Recipe) -> None:
    """Waits until all shards are there.

    JAX ends the processes of a run if one exits long before the others, and it ends this one if
    another has failed.
    """
    missing = range(recipe.num_shards)
    while missing := [s for s in missing if not (files.as_path(output) / index_name(s)).exists()]:
        time.sleep(_WAIT_SECONDS)


def _lasting(source: str) -> str:
    """Returns the name of a source that is valid in any working directory."""
    if source.startswith("tfds:") or "://" in source:
        return source
    return os.path.abspath(files.as_path(source))


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags(), cli.define_processes()))
