"""Small sets of clips for evaluation, and measures whose numbers can be told by hand."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import video_files

from dynamicrafter_jax.evaluation.measures import DREAMSIM, FRAMES, I3D, PIC, Measure
from dynamicrafter_jax.evaluation.measuring import Bench
from dynamicrafter_jax.evaluation.protocol import Protocol, load_protocol, parse_protocol
from dynamicrafter_jax.evaluation.store import Store
from dynamicrafter_jax.metrics.pic import pic

FRAMES_OF_CLIP, HEIGHT, WIDTH = 16, 16, 24


def protocol(name: str = "folders", **sections: Any) -> Protocol:
    """A protocol that ships, for small frames and few resamples, some keys changed."""
    said = load_protocol(name).as_json()
    said["picture"] |= {"height": HEIGHT, "width": WIDTH}
    said["measures"]["resamples"] = 5
    for key, value in sections.items():
        said[key] = said[key] | value if isinstance(value, dict) and said[key] else value
    return parse_protocol(json.loads(json.dumps(said)))


def clip(seed: int, frames: int = FRAMES_OF_CLIP) -> np.ndarray:
    """A pattern that drifts, each clip with its own colours."""
    tint = np.random.default_rng(seed).integers(-40, 40, 3)
    moving = video_files.moving(frames, HEIGHT, WIDTH).astype(int)
    return np.clip(moving + tint, 0, 255).astype(np.uint8)


def arrays(folder: Path, count: int, *, noise: float = 0.0, frames: int = FRAMES_OF_CLIP) -> Path:
    """Writes `clip_0.npy`, `clip_1.npy`, ..., lossless; returns the folder."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        values = clip(i, frames) + noise * draw.standard_normal((frames, HEIGHT, WIDTH, 3))
        np.save(folder / f"clip_{i}.npy", np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return folder


def features(seen: np.ndarray) -> np.ndarray:
    """Stands for what I3D makes of a clip: means of colours and of changes."""
    frames = seen[1:].astype(np.float64) / 255
    changes = np.abs(np.diff(frames, axis=0))
    return np.concatenate([frames.mean((0, 1, 2)), 10 * changes.mean((0, 1, 2))])


def likeness(seen: np.ndarray) -> np.ndarray:
    """Stands for what DreamSim makes of one: one less the difference of pixels, by frame."""
    seen = seen.astype(np.float64) / 255
    return 1 - np.abs(seen[1:] - seen[:1]).mean((1, 2, 3))


def motion(seen: np.ndarray) -> np.ndarray:
    """Stands for measures with a name."""
    return np.abs(np.diff(seen[1:].astype(np.float64), axis=0)).mean(keepdims=True)[0, 0, 0] / 255


@dataclasses.dataclass
class Counted:
    """Measures that count the clips that they are given, by name of the measure."""

    calls: Counter = dataclasses.field(default_factory=Counter)

    def measures(self, version: int = 1) -> list[Measure]:
        def made(name: str, function: Any, numbers: Any) -> Measure:
            def run(clips: Any) -> Any:
                for key, seen in clips:
                    self.calls[name] += 1
                    yield (key,), function(seen)[None]

            return Measure(name, {"network": name, "version": version}, run, numbers)

        return [
            made(I3D, features, lambda rows, prompts: {}),
            made(DREAMSIM, likeness, lambda rows, prompts: {PIC: pic(rows)}),
            made(FRAMES, motion, lambda rows, prompts: {"motion_degree": rows[:, 0] / 1.0}),
        ]

    def bench(self, output: Path, **options: Any) -> Bench:
        """A bench with these measures, in parts of three clips."""
        version, process = options.pop("version", 1), options.pop("process", 0)
        settings = {"part_size": 3, "skip": False, "progress": lambda *_: None} | options
        return Bench(self.measures(version), Store(output / "features", process), **settings)
