"""Times the networks and statistics of evaluation on a CPU, and the networks in plain PyTorch.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --clips 1 4 --images 1 17 --threads=1

Clips of 16 frames at 256x256 go through I3D; pictures of that size go through DreamSim's ensemble.
Both are resized and run in float32, in ours and in PyTorch with the same random weights. The two
must agree before they are timed, and take turns in one process. Medians are printed, and the ratio
of the fastest turns. Then the distances between two sets of random features are timed, relative to
computing I3D's features for one set. The exit status is 1 if a network takes more than 1.3 times
PyTorch's time, or the distances more than 1 % of the features' time.
"""

import argparse
import os
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing
import torch
import torch.nn.functional as F
import torch_i3d
import torch_vit
from networks import use_threads
from random_arguments import random_params

from dynamicrafter_jax import sharding
from dynamicrafter_jax.metrics import fvd
from dynamicrafter_jax.metrics.bootstrap import bootstrap
from dynamicrafter_jax.metrics.dreamsim import IMAGE_SIZE, DreamSim, embed
from dynamicrafter_jax.metrics.features import Extractor
from dynamicrafter_jax.metrics.i3d import FRAME_SIZE, I3D, i3d_features
from dynamicrafter_jax.models.layers import abstract_params, init_params

FRAMES, SIDE = 16, 256

TARGET = 1.3  # times PyTorch's seconds
TOLERANCE = 1e-4  # of max|theirs|

STATISTICS_CLIPS = 512
STATISTICS_TARGET = 0.01  # of the seconds of the features

Call = Callable[[], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clips", nargs="+", type=int, default=[1, 4], help="for I3D at once")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 17], help="for DreamSim")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    parser.add_argument("--threads", type=int, help="of each; by default one a core")
    timing.add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.threads:
        use_threads(arguments.threads)
    if os.getloadavg()[0] > 0.5:
        timing.say("Something else is running. PyTorch's threads suffer most; try --threads=1.")
    counts = {"I3D": arguments.clips, "DreamSim": arguments.images}
    rows = []
    with torch.inference_mode():
        for network, prepare in {"I3D": prepare_i3d, "DreamSim": prepare_dreamsim}.items():
            calls = prepare()
            for count in counts[network]:
                rows.append(measure(network, count, *calls(count), arguments.repeats))
                timing.say(f"{network}, {count} at once: ratio {rows[-1]['ratio']:.2f}")
    rate = max(row["count"] / row["ours"] for row in rows if row["network"] == "I3D")
    features = STATISTICS_CLIPS / rate
    parts = {name: seconds / features for name, seconds in statistics().items()}
    threads = f"Threads of each: {torch.get_num_threads()}"
    shares = [[name, f"{part:.2%}"] for name, part in parts.items()]
    text = f"{timing.made_with('torch')} {threads}.\n\n{table(rows)}\n\n" + timing.markdown(
        [f"of {STATISTICS_CLIPS} clips", "of the time of I3D's features"], shares
    )
    timing.say(f"\n{text}")
    if arguments.json:
        timing.write_json(arguments.json, {"rows": rows, "statistics": parts})
    if arguments.write_docs:
        timing.write_docs("metrics", text)
    slow = any(row["ratio"] > TARGET for row in rows)
    return 1 if slow or parts["FVD"] + parts["KVD"] > STATISTICS_TARGET else 0


def measure(network: str, count: int, ours: Call, theirs: Call, repeats: int) -> dict[str, Any]:
    """Compares and times a batch; returns a row.

    Raises:
        SystemExit: If the results differ.
    """
    expected = theirs()
    error = float(np.abs(ours() - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        sys.exit(f"{network}: ours differs from PyTorch's by {error:.1e}")
    seconds = timing.alternate({"ours": ours, "torch": theirs}, repeats)
    our, their = median(seconds["ours"]), median(seconds["torch"])
    return {
        "network": network,
        "count": count,
        "error": error,
        "seconds": seconds,
        "ours": our,
        "torch": their,
        "ratio": our / their,
        "ratio_of_fastest": min(seconds["ours"]) / min(seconds["torch"]),
    }


def prepare_i3d() -> Callable[[int], tuple[Call, Call]]:
    """Makes both networks; returns a function that makes their calls for a number of clips."""
    video = jax.ShapeDtypeStruct((1, FRAMES, FRAME_SIZE, FRAME_SIZE, 3), np.float32)
    params = init_params(abstract_params(I3D(), video), jax.random.key(0))
    network = torch_i3d.load(torch_i3d.I3D(), params)

    def calls(clips: int) -> tuple[Call, Call]:
        draw = np.random.default_rng(0)
        video = draw.integers(0, 256, (clips, FRAMES, SIDE, SIDE, 3), np.uint8)
        extractor = Extractor(i3d_features, params, sharding.make_mesh(), clips_per_device=clips)

        def ours() -> np.ndarray:
            ((_, values),) = extractor((str(i), clip) for i, clip in enumerate(video))
            return values

        return ours, lambda: torch_features(network, torch.from_numpy(video)).numpy()

    return calls


def torch_features(network: torch.nn.Module, video: torch.Tensor) -> torch.Tensor:
    """Computes the same as `i3d_features`."""
    b, t, *_ = video.shape
    frames = video.flatten(0, 1).permute(0, 3, 1, 2).float()
    size = (FRAME_SIZE, FRAME_SIZE)
    resized = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    return network((resized / 127.5 - 1).unflatten(0, (b, t)).transpose(1, 2))


def prepare_dreamsim() -> Callable[[int], tuple[Call, Call]]:
    """Makes both networks; returns a function that makes their calls for a number of pictures."""
    model = DreamSim()
    shape = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    params = jax.device_put(random_params(abstract_params(model, shape)))
    network = torch_vit.load(model, params)

    @jax.jit
    def run(params: Any, pictures: Any) -> Any:
        return embed(params, pictures, model)

    def calls(images: int) -> tuple[Call, Call]:
        pictures = np.random.default_rng(0).integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)

        def ours() -> np.ndarray:
            with jax.default_matmul_precision("highest"):
                return np.asarray(run(params, pictures))

        return ours, lambda: network(pictures).numpy()

    return calls


def statistics() -> dict[str, float]:
    """Returns the seconds of each distance."""
    draw = np.random.default_rng(0).standard_normal
    x, y = (draw((STATISTICS_CLIPS, I3D.num_classes), np.float32) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "FVD": lambda: fvd.frechet_distance(fvd.Moments.of(x), fvd.Moments.of(y)),
        "KVD": lambda: fvd.kernel_distance(x, y),
        "interval of FVD, 100 resamples": lambda: bootstrap(fvd.frechet_of_resamples, x, y),
        "interval of KVD, 100 resamples": lambda: bootstrap(fvd.kernel_of_resamples, x, y),
    }
    calls["FVD"]()  # the first call starts threads
    return {name: timing.seconds(call) for name, call in calls.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows in Markdown."""
    columns = ["network", "at once", "ours, a second", "PyTorch, a second"]
    columns += ["ratio of times", "of fastest", "difference"]
    cells = [
        [
            row["network"],
            str(row["count"]),
            f"{row['count'] / row['ours']:.2f}",
            f"{row['count'] / row['torch']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_fastest']:.2f}",
            f"{row['error']:.0e}",
        ]
        for row in rows
    ]
    return timing.markdown(columns, cells)


if __name__ == "__main__":
    sys.exit(main())
