r"""Plans a run on TPUs that are not at hand: memory, arithmetic and communication.

    python -m dynamicrafter_jax.plan --config=configs/i2v_1024.py --topology=v5e:4x4 \
        --mode=sample --config.mesh.sequence=4

The TPU compiler (`pip install 'dynamicrafter-jax[tpu]'`) compiles the programs that the chips would
run, on Linux x86-64. The exit status is 1 if they do not fit. See docs/scaling.md.
"""

import json
import sys
from collections.abc import Sequence

from dynamicrafter_jax import cli

# isort: split
from absl import flags
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning.chips import parse_topology, topology_devices, use_compiler_only
from dynamicrafter_jax.planning.plans import as_text, make_plan
from dynamicrafter_jax.planning.results import EFFORTS, default_cache

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, such as v5e:4x4, v5e-16 or 2*v5p:4x4x4.")
MODE = flags.DEFINE_enum("mode", None, ["train", "sample"], "What to plan.")
BATCH = flags.DEFINE_integer("batch", None, "Clips at once; else train.batch_size, or 1 to sample.")
CACHED = flags.DEFINE_bool("cached", False, "Train from a cache with text and vision.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
EFFORT = flags.DEFINE_enum("effort", "low", list(EFFORTS), "How hard the compiler tries.")
SAVE_EXECUTABLE = flags.DEFINE_string("save_executable", None, "Folder for the executables.")


def main(_: Sequence[str]) -> None:
    """Compiles the programs of a run, and prints their needs next to what the chips have."""
    use_compiler_only()
    if CONFIG.value is None or TOPOLOGY.value is None or MODE.value is None:
        raise UserError("--config, --topology and --mode are needed: what to plan, and where")
    topology = parse_topology(TOPOLOGY.value)
    save = SAVE_EXECUTABLE.value
    made = make_plan(
        CONFIG.value,
        topology,
        topology_devices(topology),
        MODE.value,
        batch=BATCH.value,
        cached=CACHED.value,
        effort=EFFORT.value,
        cache=default_cache(),
        save_executable=None if save is None else epath.Path(save),
    )
    print(json.dumps(made) if JSON.value else as_text(made), flush=True)
    if not made["fits"]:
        sys.stderr.write(f"error: {made['advice']}\n")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
