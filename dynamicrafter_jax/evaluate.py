r"""Evaluates videos: flags in, a report with FVD, KVD, PIC and more out.

To compare videos of any generator with a folder of others, by name:

    python -m dynamicrafter_jax.evaluate --videos=generated --reference=real \
        --i3d=i3d_torchscript.pt --dreamsim=dreamsim --output=report

To evaluate a model, which generates videos as a protocol specifies (if it stops, run the same
command to resume):

    python -m dynamicrafter_jax.evaluate --protocol=ucf101 --checkpoint=model_256 --data=UCF \
        --i3d=i3d_torchscript.pt --dreamsim=dreamsim --output=report

See docs/evaluation.md.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from dynamicrafter_jax import cli

# isort: split
import jax
from absl import flags
from etils import epath

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.config import config_to_json, deciding_sections
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import run
from dynamicrafter_jax.evaluation.datasets import open_folder, open_images
from dynamicrafter_jax.evaluation.measures import (
    CLIP,
    DREAMSIM,
    FRAMES,
    I3D,
    MEASURES,
    Measure,
    clip_measure,
    dreamsim_measure,
    frames_measure,
    i3d_measure,
)
from dynamicrafter_jax.evaluation.measuring import Bench, Look, reading
from dynamicrafter_jax.evaluation.protocol import Protocol, load_protocol
from dynamicrafter_jax.evaluation.reference import Reference, pair
from dynamicrafter_jax.evaluation.report import PAGE, scores_table
from dynamicrafter_jax.evaluation.store import Store
from dynamicrafter_jax.evaluation.zero_shot import Generator, ThroughMp4, write_inputs
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.progress import ProgressBar
from dynamicrafter_jax.sampling.sampler import load_sampler
from dynamicrafter_jax.weights.load import origin
from dynamicrafter_jax.weights.names import find_model

CONFIG = cli.define_config()
PROTOCOL = flags.DEFINE_string(
    "protocol", "folders", "ucf101, msrvtt, folders, demo, or a .json file."
)
VIDEOS = flags.DEFINE_string("videos", None, "Folder of the videos to evaluate.")
REFERENCE = flags.DEFINE_string("reference", None, "Folder of the videos to compare with.")
DATA = flags.DEFINE_string("data", None, "Folder of the protocol's data set, or tfds:NAME.")
IMAGES = flags.DEFINE_string("images", None, "Folder of the images that --videos were made from.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model to evaluate, instead of --videos.")
TOWERS = flags.DEFINE_string("towers", None, "Source of frozen towers if --checkpoint lacks them.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Clips generated at once; by default as many as the mesh splits.", 1
)
I3D_FILE = flags.DEFINE_string("i3d", None, "Weights of I3D, for FVD and KVD.")
DREAMSIM_FILES = flags.DEFINE_string("dreamsim", None, "Weights of DreamSim, for PIC.")
CLIP_FILE = flags.DEFINE_string("clip", None, "Weights of CLIP, for similarity to prompts.")
CHOSEN = flags.DEFINE_list(
    "measures", None, "From i3d, dreamsim, clip, frames; default: i3d, frames, all with weights."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the report and finished features.")
NUM_VIDEOS = flags.DEFINE_integer("num_videos", None, "Overrides the protocol's number.", 2)
SKIP = flags.DEFINE_bool("skip_unreadable", False, "Skip videos that can't be read.")
MP4 = flags.DEFINE_bool("through_mp4", False, "Also score generated clips after .mp4 coding.")
CODEC = flags.DEFINE_string("codec", "libx264", "Video codec for --through_mp4.")
CRF = flags.DEFINE_integer("crf", 18, "Constant rate factor for --through_mp4; lower is better.")
INPUTS = flags.DEFINE_string("write_inputs", None, "Only write images and prompts, to this folder.")
PLOTS = flags.DEFINE_bool("plots", True, "Draw plots, which needs matplotlib.")
PART_SIZE = flags.DEFINE_integer("part_size", 32, "Clips whose features are written at once.", 1)
CLIPS_PER_DEVICE = flags.DEFINE_integer(
    "clips_per_device", 1, "Clips that a device measures at once.", 1
)
PROCESSES = cli.define_processes()


def main(_: Sequence[str]) -> None:
    """Checks the flags, joins the other processes, evaluates, and prints the table."""
    if bool(DATA.value) == bool(REFERENCE.value):
        raise UserError("give --reference, a folder of videos, or --data, the protocol's data set")
    place = DATA.value or needed(REFERENCE, "a folder of videos")
    if INPUTS.value is None:
        check_flags()
    protocol = load_protocol(PROTOCOL.value or "folders").with_videos(NUM_VIDEOS.value)
    if (protocol.data is None) == (DATA.value is not None):
        kind = (
            "--reference, a folder of videos"
            if protocol.data is None
            else "--data, its own data set"
        )
        raise UserError(f"the protocol {protocol.name} needs {kind}")
    with PROCESSES.joined():
        if INPUTS.value is None:
            evaluate(protocol, place)
        else:
            write_only_inputs(protocol, place, INPUTS.value)


def check_flags() -> None:
    """Checks that no flags are missing or in conflict."""
    generates = CHECKPOINT.value is not None
    if generates == (VIDEOS.value is not None):
        raise UserError("give --videos, a folder to evaluate, or --checkpoint, a model")
    if generates and IMAGES.value is not None:
        raise UserError("--images does not go with --checkpoint, which takes the reference's")
    if MP4.value and not generates:
        raise UserError("--through_mp4 needs --checkpoint, since --videos are files already")


def needed(flag: flags.FlagHolder, what: str) -> str:
    """Returns the value of a flag that must be given."""
    if flag.value is None:
        raise UserError(f"no --{flag.name}: {what}")
    return flag.value


def evaluate(protocol: Protocol, place: str) -> None:
    """Evaluates, and prints the numbers."""
    # Cheap checks come first.
    output = files.as_path(needed(OUTPUT, "the folder for the report"))
    files.check_writable(output / PAGE)
    draw = None
    if PLOTS.value:
        from dynamicrafter_jax.evaluation.plots import draw_plots as draw
    has_images = protocol.pairing == "names" or IMAGES.value is not None
    measures = choose_measures(protocol, has_images)

    skip: Any = {"skip": SKIP.value}
    reference, problems = run.open_reference(protocol, place, **skip)
    about: dict[str, Any] = {
        "data": place,
        "videos": VIDEOS.value,
        "images": IMAGES.value,
        "checkpoint": CHECKPOINT.value,
        "command": sys.argv,
        "environment": provenance.environment(),
    }
    if CHECKPOINT.value is not None:
        candidates = generated(protocol, reference, CHECKPOINT.value, output, about)
    else:
        videos = open_folder(needed(VIDEOS, "a folder to evaluate"))
        images = None if IMAGES.value is None else open_images(IMAGES.value)
        given, passed = pair(protocol, videos, reference, images, **skip)
        sets = {run.VIDEOS: run.as_they_are}
        candidates = run.Candidates(given.items(), reading(given.read), sets, passed)

    with ProgressBar() as progress:
        store = Store(output / run.FEATURES, jax.process_index())
        bench = Bench(measures, store, PART_SIZE.value, SKIP.value, progress)
        scores = run.evaluate(
            protocol, bench, reference, candidates, output, about, draw=draw, problems=problems
        )
    if not scores:
        return
    for note in dict.fromkeys(note for one in scores for note in one.notes):
        sys.stderr.write(f"warning: {note}\n")
    print("\n".join(scores_table(scores, protocol.measures.level)))
    print(f"{output / PAGE}: protocol {protocol.name} {protocol.sha256[:8]}", flush=True)


def choose_measures(protocol: Protocol, has_images: bool) -> list[Measure]:
    """Returns the requested measures; by default, I3D, frames and all others with weights."""
    with_weights = {DREAMSIM: DREAMSIM_FILES.value, CLIP: CLIP_FILE.value}
    wanted = CHOSEN.value or [I3D, *(name for name, file in with_weights.items() if file), FRAMES]
    if unknown := sorted(set(wanted) - set(MEASURES)):
        raise UserError(f"no measure {', '.join(unknown)}: choose from {', '.join(MEASURES)}")
    if DREAMSIM in wanted and not has_images:
        raise UserError(
            "PIC compares frames with the image that they were made from: give --images, or a "
            'protocol with "pairing": "names"'
        )
    mesh = sharding.make_mesh(data=-1, devices=jax.local_devices())
    options = protocol.measures, mesh, CLIPS_PER_DEVICE.value
    measures = []
    if I3D in wanted:
        measures.append(i3d_measure(needed(I3D_FILE, _WHERE_I3D), *options))
    if DREAMSIM in wanted:
        measures.append(dreamsim_measure(needed(DREAMSIM_FILES, _WHERE_DREAMSIM), *options))
    if CLIP in wanted:
        measures.append(clip_measure(needed(CLIP_FILE, _WHERE_CLIP), *options))
    if FRAMES in wanted:
        measures.append(frames_measure(*options[1:], has_images=has_images))
    return measures


_WHERE_I3D = (
    "FVD and KVD need the weights of I3D, such as i3d_torchscript.pt of StyleGAN-V or "
    "i3d_pretrained_400.pt of VideoGPT; or leave them out with --measures=frames"
)
_WHERE_DREAMSIM = (
    "PIC needs the weights of DreamSim: the folder that the dreamsim package downloads to, or a "
    "file that was made from it"
)
_WHERE_CLIP = (
    "similarity to prompts needs the weights of OpenCLIP ViT-H/14, such as "
    "open_clip_model.safetensors of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
)


def generated(
    protocol: Protocol,
    reference: Reference,
    checkpoint: str,
    output: epath.Path,
    about: dict[str, Any],
) -> run.Candidates:
    """Loads the model, records it in `about`, and returns the clips that it will generate."""
    config = CONFIG.of_model(checkpoint)
    model = find_model(checkpoint)
    towers = None if TOWERS.value is None else find_model(TOWERS.value)
    share = bulk.share_of(config)
    if share.together:
        raise UserError(
            "the mesh spans several hosts, on which evaluation can't sample: choose a mesh that "
            "fits on one host, and each host will generate its own clips"
        )
    described = config_to_json(config)
    made_with = {
        "weights": origin(model),
        "towers": None if towers is None else origin(towers),
        **deciding_sections(config),
    }
    about |= {"config": described, "weights": made_with["weights"], "towers": made_with["towers"]}
    generator = Generator(protocol, config, reference, made_with)
    sets: dict[str, Look] = {run.VIDEOS: run.as_they_are}
    if MP4.value:
        fps, options = config.sampling.video_fps, {"codec": CODEC.value, "crf": CRF.value}
        media.check_output(output / "clip.mp4", fps, **options)
        name = f"{run.THROUGH_MP4}_{CODEC.value}_{CRF.value}"  # next to those of other options
        sets[name] = ThroughMp4(fps, **options)

    sampler, params = load_sampler(model, share.mesh, config=config, towers=towers)
    batch_size = BATCH_SIZE.value or sharding.batch_multiple(share.mesh)
    sample = bulk.BatchSampler(sampler, params, batch_size)
    produce = functools.partial(generator.produce, sample=sample, batch_size=batch_size)
    return run.Candidates(generator.items(), produce, sets)


def write_only_inputs(protocol: Protocol, place: str, folder: str) -> None:
    """Writes the inputs that another generator needs to be evaluated under the protocol."""
    reference, _ = run.open_reference(protocol, place, skip=SKIP.value)
    if jax.process_index() == 0:
        write_inputs(folder, protocol, reference)
        print(f"{folder}: images and prompts of {len(reference.clips)} clips", flush=True)


if __name__ == "__main__":
    cli.run(main)
