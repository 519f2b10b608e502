r"""Animates images: flags in, videos out.

    python sample.py --config=configs/i2v_512.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

For a table of images, on any number of devices and hosts (if it stops, run the same command to
resume):

    python sample.py --checkpoint=model_512 --prompts=batch.csv --output_dir=videos

Common settings are flags, such as `--steps=25`, and so is everything in the model's config, such as
`--config.precision.dtype=bfloat16`. See docs/sampling.md.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dynamicrafter_jax import cli

# isort: split
import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.cli.setting_flags import define_setting_flags, set_given
from dynamicrafter_jax.config import config_to_json, deciding_sections
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import Clips, ImageToVideo
from dynamicrafter_jax.runtime import distributed, files, preemption, provenance
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.noise import read_noise
from dynamicrafter_jax.sampling.progress import ProgressBar
from dynamicrafter_jax.sampling.sampler import load_sampler
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.weights.load import origin
from dynamicrafter_jax.weights.names import find_model

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "demo, a converted directory, a file, or a Hub id."
)
TOWERS = flags.DEFINE_string("towers", None, "Source of frozen towers if --checkpoint lacks them.")
IMAGE = flags.DEFINE_string("image", None, "Picture to animate, or a .npy in [-1, 1].")
END_IMAGE = flags.DEFINE_string("end_image", None, "Picture to end at, for interpolation.")
LOOP = flags.DEFINE_bool("loop", False, "End where the video began.")
PROMPT = flags.DEFINE_string("prompt", "", "What happens; empty to use only the image.")
OUTPUT = flags.DEFINE_string("output", None, "A .mp4, .gif, .webp, or a folder of PNGs.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Videos per image and prompt.")
PROMPTS = flags.DEFINE_string("prompts", None, "A .csv or .jsonl of id, image, prompt, ...")
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the videos of --prompts.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Clips of --prompts at once; by default as many as the mesh splits.", 1
)
CODEC = flags.DEFINE_string("codec", "libx264", "Video codec of .mp4 files.")
CRF = flags.DEFINE_integer("crf", 18, "Constant rate factor of .mp4 files; lower is better.")
NOISE = flags.DEFINE_string("noise", None, "Replay the draws of another run, from an .npz.")
SAVE_LATENTS = flags.DEFINE_string("save_latents", None, "Also write the final latents, a .npy.")
SAVE_VIDEO = flags.DEFINE_string("save_video", None, "Also write the unclipped frames, a .npy.")
SETTINGS = define_setting_flags()
PROCESSES = cli.define_processes()


def main(_: Sequence[str]) -> None:
    """Checks the flags, joins the other processes, and samples."""
    table, folder, image, output = PROMPTS.value, OUTPUT_DIR.value, IMAGE.value, OUTPUT.value
    if table is not None:
        if folder is None:
            raise UserError("--prompts needs --output_dir, the folder for its videos")
        for flag in (IMAGE, OUTPUT, END_IMAGE, NOISE, SAVE_LATENTS, SAVE_VIDEO):
            if flag.value is not None:
                raise UserError(f"--{flag.name} does not go with --prompts")
        with joined() as (config, checkpoint):
            status = sample_table(config, checkpoint, table, folder)
        sys.exit(status)
    if BATCH_SIZE.value is not None:
        raise UserError("--batch_size goes with --prompts only")
    if image is None:
        raise UserError("no --image: give the picture to animate")
    if output is None:
        raise UserError("no --output: give the video to write, such as out.mp4")
    with joined() as (config, checkpoint):
        sample_image(config, checkpoint, image, output)


@contextlib.contextmanager
def joined() -> Iterator[tuple[ConfigDict, str]]:
    """Joins the other processes, and gives the config and the checkpoint."""
    checkpoint = CHECKPOINT.value
    if checkpoint is None:
        raise UserError("no --checkpoint: give demo, a converted directory, a file, or a Hub id")
    config = choose_config(checkpoint)
    with PROCESSES.joined():
        yield config, checkpoint


def choose_config(checkpoint: str) -> ConfigDict:
    """Returns the config given by flags, or else the model's, with the settings given by flags."""
    config = CONFIG.of_model(checkpoint)
    set_given(config, SETTINGS)
    return config


def sample_image(config: ConfigDict, checkpoint: str, image: str, output: str) -> None:
    """Makes the videos of one image: does the cheap checks, loads the model, and samples."""
    check_early(config, image, output)
    noise = None if NOISE.value is None else read_noise(NOISE.value)
    model, towers = find_models(checkpoint)
    animate = ImageToVideo.from_pretrained(model, config=config, towers=towers)
    details = made_with(checkpoint, model, towers) | describe(config)
    started = time.perf_counter()
    with ProgressBar() as progress:
        clips = animate.sample(
            image,
            PROMPT.value,
            end_image=END_IMAGE.value,
            loop=LOOP.value,
            num_samples=NUM_SAMPLES.value,
            noise=noise,
            progress=progress,
        )
    if jax.process_index() != 0:
        return
    paths = write(clips, config, image, output, details)
    seconds = time.perf_counter() - started
    print(
        f"{', '.join(paths)}: {seconds:.1f} s, {progress.seconds_per_step:.3f} s a step, "
        f"peak memory {provenance.peak_memory() / 2**30:.2f} GiB",
        flush=True,
    )


def sample_table(config: ConfigDict, checkpoint: str, table: str, folder: str) -> int:
    """Makes the videos of a table that do not exist yet; returns the exit status."""
    # What to make
    requests = bulk.read_requests(
        table, config.sampling, loop=LOOP.value, num_samples=NUM_SAMPLES.value
    )
    names = [request.name for request in requests]
    bulk.check_folder(folder, names)
    options = {"codec": CODEC.value, "crf": CRF.value}
    for fps in {request.settings.video_fps for request in requests}:
        media.check_output(files.as_path(folder) / "video.mp4", fps, **options)
    share = bulk.share_of(config)
    batch_size = BATCH_SIZE.value or sharding.batch_multiple(share.mesh)
    batches = bulk.plan_batches(requests, batch_size)[share.part :: share.parts]

    # Model
    model, towers = find_models(checkpoint)
    sampler, params = load_sampler(model, share.mesh, config=config, towers=towers)

    # Run
    if jax.process_index() == 0:
        bulk.remove_leftovers(folder, names)
    manifest = bulk.Manifest(folder, jax.process_index())
    made, details = made_with(checkpoint, model, towers), describe(config)
    decides = deciding_sections(config)
    decides |= {"weights": made["weights"], "towers": made["towers"], **options}
    length = sampler.models.text_encoder.context_length
    loader = bulk.Loader(manifest, decides, length, together=share.together)
    inspect = bulk.agreed(loader, requests) if share.together else loader.inspect
    writer = bulk.Writer(manifest, folder, **options, made_with=made, details=details)
    with preemption.Preemption() as watched:
        run = bulk.BulkRun(
            bulk.BatchSampler(sampler, params, batch_size),
            lambda batch: loader.load([inspect(request) for request in batch]),
            writer if share.writes else None,
            watched.requested,
            lambda one, seconds: print(f"{folder}/{one.request.name}.mp4: {seconds:.1f} s"),
        )
        summary = run(batches)
    return conclude(summary, manifest, folder, names)


def conclude(
    summary: bulk.Summary, manifest: bulk.Manifest, folder: str, names: Sequence[str]
) -> int:
    """Merges the manifests of all processes and prints a summary; returns the exit status."""
    process, alone = jax.process_index(), jax.process_count() == 1
    place = files.as_path(folder) / bulk.summary_name(process)
    provenance.write_record(place, dataclasses.asdict(summary))
    if not alone:
        distributed.wait_for_all("sampled")
    if process == 0:
        manifest.compact(names)
    if not alone:
        distributed.wait_for_all("compacted")
    print(summary if alone else f"process {process}: {summary}", flush=True)
    if summary.stopped:
        sys.stderr.write("stopped as requested: run the same command to resume\n")
        return preemption.EXIT_STATUS
    noted = bulk.read_manifest(folder)
    failed = sum(noted[name]["status"] == "error" for name in names if name in noted)
    if failed:
        sys.stderr.write(
            f'error: {failed} of {len(names)} clips failed: the lines with status "error" in '
            f"{files.as_path(folder) / bulk.MANIFEST_FILE} say why\n"
        )
    return 1 if failed else 0


def find_models(checkpoint: str) -> tuple[epath.Path, epath.Path | None]:
    """Returns the paths of the model and, if given, of its towers."""
    return find_model(checkpoint), None if TOWERS.value is None else find_model(TOWERS.value)


def made_with(checkpoint: str, model: epath.Path, towers: epath.Path | None) -> dict[str, Any]:
    """Returns what determines the video of a request: weights and environment."""
    return {
        "checkpoint": checkpoint,
        "weights": origin(model),
        "towers": None if towers is None else origin(towers),
        **provenance.environment(),
    }


def describe(config: ConfigDict) -> dict[str, Any]:
    """Returns the other details that are recorded next to a video."""
    return {"config": config_to_json(config), "noise": NOISE.value, "command": sys.argv}


def check_early(config: ConfigDict, image: str, output: str) -> None:
    """Finds errors that would otherwise occur after the model is loaded."""
    settings = SamplingSettings.from_config(config.sampling)
    check_places(image, output)
    for path in output_paths(output):
        media.check_output(path, settings.video_fps, codec=CODEC.value, crf=CRF.value)
    if LOOP.value and END_IMAGE.value is not None:
        raise UserError("--end_image and --loop exclude each other: a loop ends as it began")
    pictures = [picture for picture in (image, END_IMAGE.value) if picture is not None]
    media.fit_images(pictures, settings.height, settings.width, settings.fit)
    for flag in (SAVE_LATENTS, SAVE_VIDEO):
        if flag.value is not None:
            files.check_writable(flag.value)


def check_places(image: str, output: str) -> None:
    """Checks that nothing is written twice, or over files that no run has written."""
    videos = output_paths(output)
    provenance.check_places(videos, named=len(videos) == 1)
    written = [("--output", path) for path in videos]
    written += [("what lies beside --output", provenance.record_beside(path)) for path in videos]
    written += [(f"--{f.name}", f.value) for f in (SAVE_LATENTS, SAVE_VIDEO) if f.value is not None]
    read = [("--image", image)]
    sources = (END_IMAGE, NOISE, CHECKPOINT, TOWERS)
    read += [(f"--{flag.name}", flag.value) for flag in sources if flag.value is not None]
    files.check_apart(written, read)


def write(
    clips: Clips, config: ConfigDict, image: str, output: str, details: dict[str, Any]
) -> list[str]:
    """Writes each clip's video and, next to it, how it was made; returns the videos' paths."""
    paths = output_paths(output)
    video_fps = config.sampling.video_fps
    for index, (path, frames) in enumerate(zip(paths, clips.frames(), strict=True)):
        media.write_video(path, frames, video_fps, codec=CODEC.value, crf=CRF.value)
        provenance.write_record(
            provenance.record_beside(path),
            {
                "image": image,
                "end_image": END_IMAGE.value,
                "loop": LOOP.value,
                "prompt": PROMPT.value,
                "seed": config.sampling.seed,
                "sample_index": index,
                **details,
            },
        )
    for flag, arrays in ((SAVE_LATENTS, clips.latents), (SAVE_VIDEO, clips.video)):
        if flag.value is not None:
            files.write_array(flag.value, arrays[0] if len(arrays) == 1 else arrays)
    return paths


def output_paths(output: str) -> list[str]:
    """Returns a path for each sample; several are numbered before the extension."""
    if NUM_SAMPLES.value == 1:
        return [output]
    path = epath.Path(output)
    return [str(path.with_name(f"{path.stem}-{i}{path.suffix}")) for i in range(NUM_SAMPLES.value)]


if __name__ == "__main__":
    cli.run(main)
