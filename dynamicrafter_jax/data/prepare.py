r"""Copies videos and captions into a TFDS data set: a few large files instead of many small ones.

    python -m dynamicrafter_jax.data.prepare --source=results_2M_train.csv --videos=VIDEOS \
        --data_dir=DIRECTORY --name=webvid
    python -m dynamicrafter_jax.data.prepare --source=FOLDER --data_dir=DIRECTORY --name=clips

Videos are stored unchanged, and read without TensorFlow. To train on them, set
`--config.data.source=tfds:DIRECTORY/webvid`, or `tfds:webvid` if `TFDS_DATA_DIR` is set.
"""

import functools
import time
from collections.abc import Mapping, Sequence

from dynamicrafter_jax import cli

# isort: split
from absl import flags

from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.errors import UserError


def define_flags() -> dict[str, flags.FlagHolder]:
    """Defines the flags of the command line, which other entry points must not inherit."""
    return {
        "source": flags.DEFINE_string("source", None, "WebVid .csv, or folder of videos."),
        "videos": flags.DEFINE_string("videos", None, "Folder of the .csv's videos."),
        "data_dir": flags.DEFINE_string("data_dir", None, "Folder of TFDS data sets."),
        "name": flags.DEFINE_string("name", None, "Name of the data set."),
    }


def main(holders: Mapping[str, flags.FlagHolder], _: Sequence[str]) -> None:
    """Prepares the data set that the flags describe, and prints one line about it."""
    run(**{name: holder.value for name, holder in holders.items()})


def run(source: str | None, videos: str | None, data_dir: str | None, name: str | None) -> None:
    """Prepares a data set, and prints one line about it.

    Args:
        source: See `sources.open_source`.
        videos: See `sources.open_source`.
        data_dir: See `builder.prepare`.
        name: See `builder.prepare`.

    Raises:
        UserError: An argument is missing, or `open_source` or `prepare` refuses one.
    """
    from dynamicrafter_jax.data.tfds import builder  # slow to import

    started = time.perf_counter()
    for flag, value in (("source", source), ("data_dir", data_dir), ("name", name)):
        if not value:
            raise UserError(f"no --{flag}: see --help")
    assert source is not None and data_dir is not None and name is not None
    opened = open_source(source, videos=videos)
    folder = builder.prepare(opened, name, data_dir, progress=True)
    print(f"{folder}: {len(opened):,} videos, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
