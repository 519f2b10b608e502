r"""Exports a model as programs that run without its code.

    python -m dynamicrafter_jax.artifact --checkpoint=model_512 --output=artifact_512

The programs depend on the settings in the config, such as `--config.sampling.steps=25`. See
docs/exporting.md.
"""

import time
from collections.abc import Sequence

from dynamicrafter_jax import cli

# isort: split
from absl import flags

from dynamicrafter_jax.artifact.exporting import check_targets, export_artifact, possible_targets
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import check_writable
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.weights.load import load_pretrained, origin
from dynamicrafter_jax.weights.names import find_model

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "demo, a converted directory, a file, or a Hub id."
)
TOWERS = flags.DEFINE_string("towers", None, "Source of frozen towers, if not in --checkpoint.")
OUTPUT = flags.DEFINE_string("output", None, "Directory to write, new or empty.")
PLATFORMS = flags.DEFINE_list("platforms", None, "portable, tpu, cuda; by default all possible.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips sampled by one call.", 1)
INTERPOLATION = flags.DEFINE_bool("interpolation", False, "Clips have an end image, or loop.")


def main(_: Sequence[str]) -> None:
    """Checks everything that is cheap to check, reads the model and exports it."""
    started = time.perf_counter()
    checkpoint, output = CHECKPOINT.value, OUTPUT.value
    if checkpoint is None:
        raise UserError("no --checkpoint: give demo, a converted directory, a file, or a Hub id")
    if output is None:
        raise UserError("no --output: give the directory to write")
    config = CONFIG.of_model(checkpoint)
    targets = possible_targets() if PLATFORMS.value is None else PLATFORMS.value
    check_targets(targets)
    SamplingSettings.from_config(config.sampling)
    check_writable(output, folder=True)
    model = find_model(checkpoint)
    towers = None if TOWERS.value is None else find_model(TOWERS.value)
    sources = origin(model) + ([] if towers is None else origin(towers))
    config, params = load_pretrained(model, config=config, towers=towers)
    export_artifact(
        config,
        params,
        output,
        targets=targets,
        batch_size=BATCH_SIZE.value,
        interpolation=INTERPOLATION.value,
        sources=sources,
    )
    print(f"{output}: {', '.join(targets)}, {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    cli.run(main)
