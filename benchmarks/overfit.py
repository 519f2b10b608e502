"""Trains a small model on eight drawn clips until it reproduces them from their first frames.

    python benchmarks/overfit.py WORKDIR          a quarter of an hour on two cores

Everything is fixed in advance: clips, seeds, budget. The model is that of the golden files with
only one level in its U-Net, on small frames, with random weights. Its VAE is random too, except for
the last layer, which is set so that latents have zero mean, unit variance and a narrow posterior,
like those of a trained VAE. Training works as in any run: clips in files, a cache, `train.py`. At
each checkpoint, the averaged parameters sample every clip from its first frame and its prompt, and
the sampled latents are compared with the VAE's means of the clip. The script prints a table and
draws docs/images/overfit.svg. The exit status is 1 if the target was missed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dynamicrafter_jax import cli
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.data.synthetic import Renderer, Scene, draw_scene, trajectory
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.media import write_video
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.training.workdir import open_run
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.load import abstract_params

ROOT = Path(__file__).parent.parent
CURVE = ROOT / "docs" / "images" / "overfit.svg"
CONFIG = ROOT / "tests" / "configs" / "tiny_v.py"

TARGET = 24.0  # dB
STEPS = 1500
EVERY = 250
SEED = 0

CLIPS = 8  # the first of the training split
STRIDE = 5  # drawn frames from one frame of a clip to the next, so that much moves in few frames

# Log-variance of the VAE's posterior.
LOGVAR = -10.0

# Fields of the config that differ from that of the golden model.
OVERRIDES = {
    "data.min_stride": 1,
    "data.max_stride": 1,
    "data.condition_dropout": 0.0,
    "data.random_frame": False,
    "data.workers": 1,
    "train.seed": SEED,
    "train.steps": STEPS,
    "train.batch_size": CLIPS,
    "train.accumulation": 1,
    "train.remat": "none",
    "train.learning_rate": 1e-3,
    "train.decay": "cosine",
    "train.warmup_steps": 100,
    "train.weight_decay": 0.0,
    "train.ema_decay": 0.99,
    "train.log_every": 50,
    "train.checkpoint_every": EVERY,
    "train.keep_every": EVERY,
    "train.sample_every": 0,
    "unet.dropout": 0.0,
    "unet.channel_mult": (1,),  # one level, so that two cores train it in minutes
    "unet.num_res_blocks": 1,
    "unet.attention_resolutions": (1,),
    "sampling.height": 32,
    "sampling.width": 48,
    "sampling.steps": 50,
    "sampling.eta": 0.0,
    "sampling.guidance_scale": 1.0,
    "sampling.fps": 8,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("workdir", type=Path, help="where clips, cache and run go")
    workdir = parser.parse_args().workdir
    cli.enable_compilation_cache()
    config = load_config(CONFIG)
    for name, value in OVERRIDES.items():
        section, field = name.split(".")
        config[section][field] = value
    scenes = [draw_scene(number, "train") for number in range(CLIPS)]
    clips = make_clips(config, scenes, workdir / "clips")
    make_start(config, clips, workdir / "start")
    flags = [f"--config={CONFIG}", f"--config.init.checkpoint={workdir / 'start'}"]
    flags += [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    source, cache = f"--config.data.source={workdir / 'clips'}", workdir / "cache"
    module = ["-m", "dynamicrafter_jax.data.cache", "--text", "--vision", f"--output={cache}"]
    run(*module, *flags, source)
    run("train.py", *flags, f"--config.data.source={cache}", f"--workdir={workdir / 'run'}")
    steps, prompts = range(EVERY, STEPS + 1, EVERY), [scene.caption for scene in scenes]
    curve = {step: psnr(workdir / "run", step, clips, prompts) for step in steps}
    print(table(curve))
    draw(curve)
    return 0 if max(np.mean(values) for values in curve.values()) > TARGET else 1


def make_clips(config: ConfigDict, scenes: list[Scene], folder: Path) -> list[np.ndarray]:
    """Draws the clips, writes each as a video with its prompt, and returns the video's frames."""
    size = config.sampling
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, scene in enumerate(scenes):
        poses = trajectory(scene, STRIDE * (size.num_frames - 1) + 1)
        frames = Renderer(scene, size.height, size.width).frames(poses)[::STRIDE]
        file = folder / f"{number}.mp4"
        write_video(file, frames, 8, crf=1)
        file.with_suffix(".txt").write_text(scene.caption)
        with open_video(str(file), file.name) as reader:
            clips.append(reader.read(range(size.num_frames), size.height, size.width))
    return clips


def latent_means(config: ConfigDict, params: dict, clips: list[np.ndarray]) -> np.ndarray:
    """Returns the VAE's scaled means for all frames, (n, t, h, w, z)."""
    models = networks_of(config)
    frames = np.concatenate(clips).astype(np.float32) / 127.5 - 1
    encode = jax.jit(lambda params, x: models.apply("vae", params, x, method="encode").mean)
    means = models.vae.scale_factor * np.asarray(encode(params, frames))
    return means.reshape(len(clips), -1, *means.shape[1:])


def make_start(config: ConfigDict, clips: list[np.ndarray], folder: Path) -> None:
    """Writes a converted model with random weights, whose latents are like a trained VAE's."""
    params = init_params(abstract_params(config), jax.random.key(SEED))
    means = latent_means(config, params, clips) / config.vae.scale_factor
    channels = means.shape[-1]
    center = means.reshape(-1, channels).mean(0)
    scale = 1 / config.vae.scale_factor / (means - center).reshape(-1, channels).std(0)
    quant = params["vae"]["quant"]
    kernel, bias = np.zeros_like(quant["kernel"]), np.full_like(quant["bias"], LOGVAR)
    kernel[:, :channels] = np.asarray(quant["kernel"])[:, :channels] * scale
    bias[:channels] = (np.asarray(quant["bias"])[:channels] - center) * scale
    params["vae"]["quant"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    for name, tree in params.items():
        converted.save_tree(converted.section_path(folder, name), tree)
    converted.write_description(folder, config, [])


def psnr(workdir: Path, step: int, clips: list[np.ndarray], prompts: list[str]) -> list[float]:
    """Returns the PSNR, in dB, of each clip's sampled latents at a checkpoint.

    The peak is the range of the clip's own latents.
    """
    run = open_run(workdir, step=step)
    params = {name: read() for name, read in run.readers.items()}
    wanted = latent_means(run.config, params, clips)
    animate = ImageToVideo(run.config, params)
    made = animate.sample([clip[0] for clip in clips], prompts, seed=SEED)
    values = []
    for ours, clip in zip(made.latents, wanted, strict=True):
        error = np.mean(np.square(ours - clip), dtype=np.float64)
        values.append(float(10 * np.log10(np.ptp(clip) ** 2 / error)))
    return values


def table(curve: dict[int, list[float]]) -> str:
    """Returns a Markdown table of the curve."""
    rows = ["| step | mean PSNR (dB) | worst clip | best clip |", "|---|---|---|---|"]
    for step, values in curve.items():
        numbers = (np.mean(values), min(values), max(values))
        rows.append(f"| {step} | " + " | ".join(f"{number:.1f}" for number in numbers) + " |")
    return "\n".join(rows)


def draw(curve: dict[int, list[float]]) -> None:
    """Draws the curve, with one line per clip and a bold one for their mean."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "overfit"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    steps = list(curve)
    axes.plot(steps, list(curve.values()), color="#9db7d5", linewidth=1)
    mean = [np.mean(values) for values in curve.values()]
    axes.plot(steps, mean, color="#1f4e8c", linewidth=2.5, label="mean of the clips")
    axes.axhline(
        TARGET, color="#b03a2e", linestyle="--", linewidth=1, label=f"target {TARGET:g} dB"
    )
    axes.set(xlabel="optimizer steps", ylabel="PSNR of sampled latents (dB)", xlim=(0, STEPS))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(CURVE, metadata={"Date": None})


def run(*arguments: str) -> None:
    """Runs a command of this repository."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
