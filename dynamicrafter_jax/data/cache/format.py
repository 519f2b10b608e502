"""The files of a latent cache.

A cache is a folder of shards, each for a run of consecutive videos of the source:

- `moments-00000.array_record`: the VAE's moments of every frame of every video, in order. The
  record of a frame that can't be decoded is empty.
- `vision-00000.array_record`, if vision tokens are cached: the same for the vision tower, and one
  more record, for the zero image that stands for no image.
- `text-00000.array_record`, if text states are cached: one record per video, and one more, for "".
- `index-00000.json`: the videos, and the sizes of these files. It is written last, so a shard with
  an index is whole.

`cache_recipe.json` is written first and describes the cache; `cache.json` is written last and means
that it is complete. A record is the plain bytes of an array; `Recipe` has its type and shape.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

FORMAT_VERSION = 1
RECIPE_FILE, CACHE_FILE = "cache_recipe.json", "cache.json"

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""Types that arrays can be stored in."""

NETWORKS = {"moments": "vae", "text": "text_encoder", "vision": "image_encoder"}
"""What can be cached, each with the config section of the network that outputs it."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a cache holds, and what it was made from.

    Attributes:
        format_version: `FORMAT_VERSION` of the package that wrote it.
        num_videos: Videos of the source, including broken ones.
        videos_per_shard: Videos in a shard; the last shard may have fewer.
        height: Height of the frames that the networks saw, in pixels.
        width: Width of the frames, in pixels.
        dtype: One of `DTYPES`.
        shapes: Shape of a record, for each of `NETWORKS` that is cached.
        networks: The config section of each network used.
        precision: The config section `precision`.
        weights: For each network, names and SHA-256 of the files it was loaded from.
        source: The source's name, and its split.
    """

    format_version: int
    num_videos: int
    videos_per_shard: int
    height: int
    width: int
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    networks: Mapping[str, Mapping[str, Any]]
    precision: Mapping[str, Any]
    weights: Mapping[str, Sequence[Mapping[str, Any]]]
    source: Mapping[str, str]

    @property
    def num_shards(self) -> int:
        """How many shards a complete cache has."""
        return -(-self.num_videos // self.videos_per_shard)

    def items(self, shard: int) -> range:
        """Returns the source's numbers for the videos of a shard."""
        start = shard * self.videos_per_shard
        return range(start, min(start + self.videos_per_shard, self.num_videos))

    def decode(self, kind: str, records: Sequence[bytes]) -> np.ndarray:
        """Returns the arrays in n records of a kind, stacked along a new axis."""
        values = np.frombuffer(b"".join(records), DTYPES[self.dtype])
        return values.reshape(len(records), *self.shapes[kind])

    def differences(self, other: "Recipe") -> str:
        """Describes the differences from another recipe; returns "" if there are none.

        The location of the videos does not matter.
        """
        ours, theirs = (_flat(dataclasses.asdict(recipe)) for recipe in (self, other))
        return ", ".join(
            f"{name} {ours.get(name)} and not {theirs.get(name)}"
            for name in dict.fromkeys((*ours, *theirs))
            if ours.get(name) != theirs.get(name) and not name.startswith("source")
        )


class Entry(NamedTuple):
    """One video in a cache.

    Attributes:
        name: What logs and messages call it.
        caption: Its prompt, or "".
        file: Its path, or None if the source holds its bytes.
        fps: Frames a second.
        frames: How many frames its file claims to have; each has a record.
        decoded: How many of the frames could be decoded.
        problem: What is wrong with it, or "".
    """

    name: str
    caption: str
    file: str | None
    fps: float
    frames: int
    decoded: int
    problem: str


class ShardIndex(NamedTuple):
    """The contents of a shard: its videos in order, and the size of each file."""

    videos: list[Entry]
    files: dict[str, int]


class DamagedCacheError(UserError):
    """Something in a cache is missing or broken, whichever video is asked for."""


def is_cache(folder: str) -> bool:
    """Returns whether there is a cache in a folder, finished or not."""
    if folder.startswith("tfds:"):
        return False
    path = files.as_path(folder)
    return (path / CACHE_FILE).exists() or (path / RECIPE_FILE).exists()


def is_cache_file(name: str) -> bool:
    """Returns whether a file with this name may be part of a cache, finished or not."""
    return _NAMES.fullmatch(name) is not None


def records_name(kind: str, shard: int) -> str:
    """Returns the name of the file with a shard's records of a kind, one of `NETWORKS`."""
    return f"{kind}-{shard:05d}.array_record"


def index_name(shard: int) -> str:
    """Returns the name of a shard's index."""
    return f"index-{shard:05d}.json"


def network_sections(config: ConfigDict, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the config sections of the networks whose outputs are cached, as plain JSON."""
    return {NETWORKS[kind]: json.loads(config[NETWORKS[kind]].to_json()) for kind in kinds}


def read_cache(folder: epath.PathLike) -> Recipe:
    """Returns the recipe of a cache after checking that all of its files are there.

    Raises:
        UserError: There is no cache, or it is unfinished, damaged or of a newer version.
    """
    path = files.as_path(folder)
    if not (path / CACHE_FILE).exists():
        if not (path / RECIPE_FILE).exists():
            raise UserError(f"{folder} is not a latent cache: it has no {CACHE_FILE}")
        recipe, _ = _read_recipe(path / RECIPE_FILE)
        done = sum((path / index_name(s)).exists() for s in range(recipe.num_shards))
        raise UserError(
            f"{folder} is an unfinished cache ({done} of {recipe.num_shards} shards): "
            "run the command that makes it again to resume"
        )
    recipe, described = _read_recipe(path / CACHE_FILE)
    sizes = _sizes(path)
    for name, size in described["files"].items():
        if sizes.get(name) != size:
            state = "cut short or changed" if name in sizes else "missing"
            raise DamagedCacheError(f"{path / name} is {state}: {_MEND}")
    return recipe


def check_networks(folder: epath.PathLike, recipe: Recipe, config: ConfigDict) -> None:
    """Checks that a cache was made with the networks of a config.

    Args:
        folder: Folder of the cache, for the message.
        recipe: Recipe of the cache.
        config: The config.

    Raises:
        UserError: It was made with other networks.
    """
    made = recipe.networks
    here = {name: json.loads(config[name].to_json()) for name in made}
    for name in _flat(made):
        ours, theirs = _flat(here).get(name), _flat(made)[name]
        if ours != theirs:
            raise UserError(
                f"{folder} was made with {name} = {theirs}, but here it is {ours}: give the config "
                "that it was made with, or make another cache"
            )


def read_recipe(folder: epath.PathLike) -> Recipe | None:
    """Returns the recipe of the cache in a folder, finished or not; None if there is none.

    Raises:
        UserError: It is damaged or of a newer version.
    """
    path = files.as_path(folder) / RECIPE_FILE
    return _read_recipe(path)[0] if path.exists() else None


def write_recipe(folder: epath.PathLike, recipe: Recipe) -> None:
    """Writes the recipe of a cache, as its first file."""
    files.write_json(files.as_path(folder) / RECIPE_FILE, dataclasses.asdict(recipe))


def write_index(folder: epath.PathLike, shard: int, videos: Sequence[Entry]) -> None:
    """Writes the index of a shard, as its last file."""
    path = files.as_path(folder)
    names = (records_name(kind, shard) for kind in NETWORKS)
    sizes = {name: (path / name).stat().length for name in names if (path / name).exists()}
    index = {"videos": [video._asdict() for video in videos], "files": sizes}
    files.write_json(path / index_name(shard), index)


def read_index(folder: epath.PathLike, shard: int) -> ShardIndex:
    """Returns the index of a shard.

    Raises:
        UserError: The index can't be read.
    """
    path = files.as_path(folder) / index_name(shard)
    try:
        index = json.loads(files.read_bytes(path))
        return ShardIndex([Entry(**video) for video in index["videos"]], dict(index["files"]))
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UserError):
            raise DamagedCacheError(f"{error}; {_MEND}") from error
        raise DamagedCacheError(f"{path} is damaged: {_MEND}") from error


def finish(folder: epath.PathLike, recipe: Recipe) -> dict[str, int]:
    """Writes `cache.json`, when all shards are whole.

    Returns:
        How many `broken_videos` and `frames` the cache has.

    Raises:
        UserError: A shard is missing or damaged.
    """
    path = files.as_path(folder)
    sizes, videos = {}, []
    for shard in range(recipe.num_shards):
        index = read_index(path, shard)
        videos += index.videos
        sizes |= index.files | {index_name(shard): (path / index_name(shard)).stat().length}
    totals = {
        "broken_videos": sum(bool(video.problem) for video in videos),
        "frames": sum(video.decoded for video in videos),
    }
    files.write_json(path / CACHE_FILE, dataclasses.asdict(recipe) | totals | {"files": sizes})
    return totals


_NAMES = re.compile(
    rf"{RECIPE_FILE}|{CACHE_FILE}|index-\d+\.json|({'|'.join(NETWORKS)})-\d+\.array_record|\..*\.tmp"
)
_MEND = "copy the cache again, or run the command that makes it again"


def _read_recipe(path: epath.Path) -> tuple[Recipe, dict[str, Any]]:
    """Returns a recipe, and everything else in its file."""
    try:
        described = json.loads(files.read_bytes(path))
        version = int(described["format_version"])
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path.parent} is a cache of format version {version}, newer than this package "
                f"reads ({FORMAT_VERSION}): upgrade dynamicrafter-jax"
            )
        values: dict[str, Any] = {f.name: described[f.name] for f in dataclasses.fields(Recipe)}
        values["shapes"] = {kind: tuple(shape) for kind, shape in values["shapes"].items()}
        return Recipe(**values), described
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise DamagedCacheError(f"{path} is damaged: {_MEND}") from error


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Returns the size of every file in a folder."""
    if "://" in os.fspath(folder):
        return {path.name: path.stat().length for path in folder.iterdir()}
    with os.scandir(folder) as found:
        return {file.name: file.stat().st_size for file in found}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted names, with the values that JSON gives back."""
    leaves = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = json.loads(json.dumps(value))
    return leaves
