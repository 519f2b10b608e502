r"""Writes drawn clips to disk, for training or to look at.

    python -m dynamicrafter_jax.data.synthetic --data_dir=DIRECTORY --clips=1000
    python -m dynamicrafter_jax.data.synthetic --output=FOLDER --clips=20 --split=test

The first makes a TFDS data set that also holds the ground truth of each clip; to train on it, set
`--config.data.source=tfds:DIRECTORY/synthetic_motion`. The second makes a folder of videos with
captions next to them; set `--config.data.source=FOLDER`. Neither is needed to train on drawn clips:
`--config.data.source=synthetic:train` draws them on the fly.
"""

import functools
import time
from collections.abc import Mapping, Sequence

from dynamicrafter_jax import cli

# isort: split
from absl import flags

from dynamicrafter_jax.data.synthetic.clip_sets import ClipSet, write_folder
from dynamicrafter_jax.data.synthetic.photographs import SPLITS
from dynamicrafter_jax.errors import UserError


def define_flags() -> dict[str, flags.FlagHolder]:
    """Defines the flags of the command line, which other entry points must not inherit."""
    return {
        "data_dir": flags.DEFINE_string("data_dir", None, "Folder of TFDS data sets."),
        "output": flags.DEFINE_string("output", None, "Folder of .mp4 and .txt files instead."),
        "split": flags.DEFINE_enum("split", "train", SPLITS, "Split to draw clips of."),
        "clips": flags.DEFINE_integer("clips", 1000, "Number of clips."),
        "height": flags.DEFINE_integer("height", 64, "Height of frames, in pixels."),
        "width": flags.DEFINE_integer("width", 64, "Width of frames, in pixels."),
        "num_frames": flags.DEFINE_integer("num_frames", 16, "Number of frames in a clip."),
    }


def main(holders: Mapping[str, flags.FlagHolder], _: Sequence[str]) -> None:
    """Writes the clips that the flags describe, and prints one line about them."""
    started = time.perf_counter()
    values = {name: holder.value for name, holder in holders.items()}
    data_dir, output = values.pop("data_dir"), values.pop("output")
    if bool(data_dir) == bool(output):
        raise UserError("give --data_dir for a TFDS data set, or --output for a folder of videos")
    clip_set = ClipSet(**values)
    if output:
        write_folder(output, clip_set)
    else:
        from dynamicrafter_jax.data.synthetic.tfds import prepare  # slow to import

        output = prepare(data_dir, clip_set, progress=True)
    print(f"{output}: {clip_set.clips:,} clips, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
