r"""Animate images: flags in, videos out.

    python sample.py --config=configs/i2v_512.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

Every setting is a flag too: `--config.sampling.steps=25`. See docs/sampling.md.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax import cli, files, media, provenance
from dynamicrafter_jax.bulk import Request, read_requests
from dynamicrafter_jax.checkpoint import read_config
from dynamicrafter_jax.config import config_to_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.noise import read_noise
from dynamicrafter_jax.pipeline import Clips, ImageToVideo
from dynamicrafter_jax.progress import ProgressBar
from dynamicrafter_jax.sampling import SamplingSettings
from dynamicrafter_jax.weights import origin

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Converted directory, .ckpt or .safetensors.")
TOWERS = flags.DEFINE_string("towers", None, "Where frozen towers come from, if not in there.")
IMAGE = flags.DEFINE_string("image", None, "Picture to animate, or a .npy in [-1, 1].")
END_IMAGE = flags.DEFINE_string("end_image", None, "Picture to end at: interpolation.")
LOOP = flags.DEFINE_bool("loop", False, "End where it began.")
PROMPT = flags.DEFINE_string("prompt", "", "What happens; empty for the image alone.")
OUTPUT = flags.DEFINE_string("output", None, "A .mp4, .gif, .webp, or a folder of PNGs.")
SEED = flags.DEFINE_integer("seed", None, "Wins over --config.sampling.seed.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Videos of the same image and prompt.")
PROMPTS = flags.DEFINE_string("prompts", None, "A .csv or .jsonl of id, image, prompt, ...")
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the videos of --prompts.")
CODEC = flags.DEFINE_string("codec", "libx264", "Video codec of .mp4 files.")
CRF = flags.DEFINE_integer("crf", 18, "Constant rate factor of .mp4 files; lower is better.")
NOISE = flags.DEFINE_string("noise", None, "Replay the draws of another run, from an .npz.")
SAVE_LATENTS = flags.DEFINE_string("save_latents", None, "Also write the final latents, a .npy.")
SAVE_VIDEO = flags.DEFINE_string("save_video", None, "Also write the unclipped frames, a .npy.")


def main(_: Sequence[str]) -> None:
    """Checks everything cheap, loads the model, then samples and writes each request."""
    requests = read_flags()
    checkpoint = CHECKPOINT.value
    if checkpoint is None:
        raise UserError("no --checkpoint: give a converted directory, .ckpt or .safetensors file")
    config = choose_config(checkpoint)
    check_early(config, requests)
    noise = None if NOISE.value is None else read_noise(NOISE.value)

    animate = ImageToVideo.from_pretrained(checkpoint, config=config, towers=TOWERS.value)
    made_with = {
        "checkpoint": checkpoint,
        "weights": origin(checkpoint),
        "config": config_to_json(config),
        **provenance.environment(),
    }
    for request in requests:
        started = time.perf_counter()
        settings = {} if request.seed is None else {"seed": request.seed}
        with ProgressBar() as progress:
            clips = animate.sample(
                request.image,
                request.prompt,
                end_image=request.end_image,
                loop=LOOP.value,
                num_samples=NUM_SAMPLES.value,
                first_index=request.first_index,
                noise=noise,
                progress=progress,
                **settings,
            )
        paths = write(request, clips, config, made_with)
        seconds = time.perf_counter() - started
        print(
            f"{', '.join(paths)}: {seconds:.1f} s, {progress.seconds_per_step:.3f} s a step, "
            f"peak memory {provenance.peak_memory() / 2**30:.2f} GiB",
            flush=True,
        )


def read_flags() -> list[Request]:
    """Returns what to make."""
    if PROMPTS.value is not None:
        if OUTPUT_DIR.value is None:
            raise UserError("--prompts needs --output_dir, the folder for its videos")
        for flag in (IMAGE, OUTPUT, END_IMAGE, NOISE, SAVE_LATENTS, SAVE_VIDEO):
            if flag.value is not None:
                raise UserError(f"--{flag.name} does not go with --prompts")
        return read_requests(PROMPTS.value, OUTPUT_DIR.value)
    if IMAGE.value is None:
        raise UserError("no --image: the picture to animate")
    if OUTPUT.value is None:
        raise UserError("no --output: the video to write, as out.mp4")
    return [Request(IMAGE.value, OUTPUT.value, PROMPT.value, END_IMAGE.value, SEED.value)]


def choose_config(checkpoint: str) -> ConfigDict:
    """Returns the config of the flags, else that of the converted directory."""
    config = CONFIG.value
    if config is None:
        if not files.as_path(checkpoint).is_dir():
            raise UserError("no --config: a file does not say which model it is, as i2v_1024")
        config = read_config(checkpoint)
    if SEED.value is not None:
        config.sampling.seed = SEED.value
    return config


def check_early(config: ConfigDict, requests: Sequence[Request]) -> None:
    """Finds what would fail later, before the model is loaded."""
    settings = SamplingSettings.from_config(config.sampling)
    for request in requests:
        for path in output_paths(request.output):
            media.check_output(path, settings.video_fps, codec=CODEC.value, crf=CRF.value)
        if LOOP.value and request.end_image is not None:
            raise UserError("--end_image and --loop exclude each other: a loop ends as it began")
        for image in (request.image, request.end_image):
            if image is not None:
                media.load_image(image, settings.height, settings.width)
    for flag in (SAVE_LATENTS, SAVE_VIDEO):
        if flag.value is not None:
            files.check_writable(flag.value)


def write(
    request: Request, clips: Clips, config: ConfigDict, made_with: dict[str, Any]
) -> list[str]:
    """Writes each clip's video and, beside it, how it was made; returns the videos' paths."""
    paths = output_paths(request.output)
    for index, (path, frames) in enumerate(zip(paths, clips.frames(), strict=True)):
        video_fps = config.sampling.video_fps
        media.write_video(path, frames, video_fps, codec=CODEC.value, crf=CRF.value)
        files.write_json(
            sidecar(path),
            {
                "image": request.image,
                "end_image": request.end_image,
                "loop": LOOP.value,
                "prompt": request.prompt,
                "seed": config.sampling.seed if request.seed is None else request.seed,
                "sample_index": request.first_index + index,
                "noise": NOISE.value,
                "command": sys.argv,
                **made_with,
            },
        )
    for flag, arrays in ((SAVE_LATENTS, clips.latents), (SAVE_VIDEO, clips.video)):
        if flag.value is not None:
            files.write_array(flag.value, arrays[0] if len(arrays) == 1 else arrays)
    return paths


def output_paths(output: str) -> list[str]:
    """Returns one path a sample: several are numbered before the extension."""
    if NUM_SAMPLES.value == 1:
        return [output]
    path = epath.Path(output)
    return [str(path.with_name(f"{path.stem}-{i}{path.suffix}")) for i in range(NUM_SAMPLES.value)]


def sidecar(output: str) -> epath.Path:
    """Returns the path of the JSON beside a video."""
    path = epath.Path(output)
    return path.with_name(f"{path.stem}.json")


if __name__ == "__main__":
    cli.run(main)
