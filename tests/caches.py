"""Latent caches for tests, of numbers that are quick to make and to check."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import video_files
from etils import epath

from dynamicrafter_jax.data.cache.format import DTYPES, FORMAT_VERSION, Recipe, finish
from dynamicrafter_jax.data.cache.writer import missing_shards, prepare, write_shards
from dynamicrafter_jax.data.clips import prompt_ids
from dynamicrafter_jax.data.draws import ClipSettings
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.videos import VideoSource

HEIGHT, WIDTH = 16, 24
SHAPES = {"moments": (2, 3, 8), "text": (77, 2), "vision": (5, 4)}
SETTINGS = ClipSettings(
    height=HEIGHT,
    width=WIDTH,
    num_frames=3,
    min_stride=1,
    max_stride=6,
    fs="fps",
    condition_dropout=0.25,
    random_frame=True,
    context_length=77,
)


class Averages:
    """Stands in for the networks: averages of pixels, and of token ids.

    Attributes:
        seen: How many frames it was given, without padding.
        fails_after: Batches until it fails as a killed process does.
    """

    batch_size = 4

    def __init__(self, dtype: str = "float32", fails_after: int | None = None) -> None:
        self.dtype, self.fails_after = DTYPES[dtype], fails_after
        self.batches: list[np.ndarray] = []

    def frames(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        assert frames.shape == (self.batch_size, HEIGHT, WIDTH, 3)
        if self.fails_after is not None and len(self.batches) == self.fails_after:
            raise KeyboardInterrupt
        self.batches.append(frames)
        return {"moments": self.moments(frames), "vision": self.vision(frames)}

    def moments(self, frames: np.ndarray) -> np.ndarray:
        patches = frames.reshape(-1, 2, 8, 3, 8, 3).mean((2, 4)) / 255
        return np.concatenate([patches, patches**2, patches[..., :2]], -1).astype(self.dtype)

    def vision(self, frames: np.ndarray) -> np.ndarray:
        mean = frames.mean((1, 2, 3)) / 127.5 - 1
        return (mean[:, None, None] * np.ones((1, *SHAPES["vision"]))).astype(self.dtype)

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        ids = np.stack([prompt_ids(caption, 77) for caption in captions])
        return (ids[..., None] / 49408 + np.ones((1, *SHAPES["text"]))).astype(self.dtype)

    def zero_image(self) -> np.ndarray:
        return np.zeros(SHAPES["vision"], self.dtype)


def make_videos(folder: Path) -> str:
    """Fills a folder with videos: whole ones, one too short, one that is none, one damaged."""
    folder.mkdir()
    lengths = {"a": 12, "b": 25, "c": 2, "d": 3, "e": 7}
    for name, count in lengths.items():
        frames = video_files.moving(count)
        video_files.write(folder / f"{name}.mp4", frames, options="x264-params=keyint=10")
        (folder / f"{name}.txt").write_text(f"pattern {name} moves")
    (folder / "f.mp4").write_bytes(b"no video")
    (folder / "f.txt").write_text("nothing")
    damage(folder / "b.mp4", folder / "g.mp4", [13])
    (folder / "g.txt").write_text("with a hole in the middle")
    return os.fspath(folder)


def damage(whole: Path, damaged: Path, packets: Sequence[int]) -> None:
    """Copies a video, without what is in some of its packets."""
    with av.open(os.fspath(whole)) as file:
        places = [(p.pos or 0, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(whole.read_bytes())
    for position, size in (places[packet] for packet in packets):
        data[position + 8 : position + size] = bytes(size - 8)
    damaged.write_bytes(data)


def recipe(videos: VideoSource, kinds: Sequence[str] = (), **changes: Any) -> Recipe:
    """A recipe of moments and of further `kinds`."""
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "num_videos": len(videos),
        "videos_per_shard": 2,
        "height": HEIGHT,
        "width": WIDTH,
        "dtype": "float32",
        "shapes": {kind: SHAPES[kind] for kind in ("moments", *kinds)},
        "networks": {"vae": {"ch": 32}},
        "precision": {"dtype": "float32"},
        "weights": {"vae": [{"name": "model.ckpt", "sha256": "0" * 64}]},
        "source": {"source": "videos", "split": "train"},
    }
    return Recipe(**fields | changes)


def make(
    folder: epath.PathLike,
    videos: str,
    kinds: Sequence[str] = (),
    *,
    encoder: Any = None,
    shards: Sequence[int] | None = None,
    threads: int = 2,
    **changes: Any,
) -> Any:
    """Makes a cache, or some shards of one without finishing it; returns what encoded it."""
    source = open_source(videos)
    made = recipe(source, kinds, **changes)
    encoder = encoder or Averages(made.dtype)
    prepare(folder, made)
    missing = missing_shards(folder, made, source, range(made.num_shards))
    wanted = [shard for shard in missing if shards is None or shard in shards]
    write_shards(folder, made, source, encoder, wanted, threads=threads, watch=lambda *_: None)
    if shards is None:
        finish(folder, made)
    return encoder


def contents(folder: Path) -> dict[str, bytes]:
    """What every file in a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
