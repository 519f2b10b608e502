r"""The table of docs/scaling.md: plans of the recipes on TPUs, one row each.

    python -m dynamicrafter_jax.planning.table --list
    python -m dynamicrafter_jax.planning.table --row=sample_1024_on_4 --row=train_512
    python -m dynamicrafter_jax.planning.table

The first command lists the rows with their commands. The second plans some rows again, and saves
each plan as JSON. The second and third write the table of all saved plans.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dynamicrafter_jax import cli

# isort: split
from absl import flags
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files

ROW = flags.DEFINE_multi_string("row", [], "Rows to plan again; 'all' for every one.")
LIST = flags.DEFINE_bool("list", False, "Only list the rows and their commands.")
DOCUMENT = flags.DEFINE_string("document", "docs/scaling.md", "Where to write the table.")
PLANS = flags.DEFINE_string("plans", "docs/plans", "Folder where plans are saved.")

START, END = "<!-- plans -->", "<!-- end of plans -->"

_BF16 = ("--config.precision.dtype=bfloat16", "--config.precision.param_dtype=bfloat16")


def _train(config: str, topology: str, fsdp: int, accumulation: int, *more: str) -> tuple[str, ...]:
    return (
        f"--config={config}",
        f"--topology={topology}",
        "--mode=train",
        "--batch=64",
        "--config.mesh.data=-1",
        f"--config.mesh.fsdp={fsdp}",
        f"--config.train.accumulation={accumulation}",
        *more,
    )


def _sample(config: str, topology: str, *more: str) -> tuple[str, ...]:
    return (f"--config={config}", f"--topology={topology}", "--mode=sample", *_BF16, *more)


ROWS: dict[str, tuple[str, ...]] = {
    "train_256": _train("finetune_256", "v6e:2x4", 8, 4),
    "train_512": _train("finetune_512", "v5e:4x4", 16, 4),
    "train_1024": _train("finetune_1024", "v5e:8x8", 16, 4, "--config.mesh.sequence=4"),
    "train_512_on_v5p": _train("finetune_512", "v5p:2x2x2", 8, 4),
    "sample_1024_on_v5e": _sample("i2v_1024", "v5e:1x1"),
    "sample_1024_on_v6e": _sample("i2v_1024", "v6e:1x1"),
    "sample_1024_on_4": _sample("i2v_1024", "v5e:2x2", "--config.mesh.sequence=4"),
}
ROWS |= {
    f"{name}_cached": (*arguments, "--cached")
    for name, arguments in ROWS.items()
    if name.startswith("train")
}
"""The flags of `dynamicrafter_jax.plan` for each row, by the row's name."""


def main(_: Sequence[str]) -> None:
    """Plans the requested rows, and writes the table of all saved plans."""
    if LIST.value:
        for name in ROWS:
            print(f"{name}: {command(name)}")
        return
    chosen = list(ROWS) if "all" in ROW.value else ROW.value
    if unknown := set(chosen) - set(ROWS):
        raise UserError(
            f"there is no row {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}"
        )
    folder, document = epath.Path(PLANS.value), epath.Path(DOCUMENT.value)
    files.check_writable(document)
    for name in chosen:
        files.write_json(folder / f"{name}.json", _plan(name))
    plans = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ROWS
        if (folder / f"{name}.json").exists()
    }
    files.write_bytes(document, rewritten(document.read_text(), table(plans)).encode())


def command(name: str) -> str:
    """Returns the command that plans a row."""
    return " ".join(("python -m dynamicrafter_jax.plan", *ROWS[name]))


def table(plans: dict[str, dict[str, Any]]) -> str:
    """Returns a Markdown table of plans, by the names of their rows."""
    lines = [
        "| row | chips | mesh | clips | GiB a device | ratio | share a device | VAE and towers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, plan) for name, plan in plans.items()]
    return "\n".join(lines)


def rewritten(document: str, table: str) -> str:
    """Returns a document with the table between its marks replaced.

    Raises:
        UserError: The document has no marks.
    """
    if START not in document or END not in document:
        raise UserError(f"the document has no lines {START!r} and {END!r} to put the table between")
    before, _, rest = document.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def _row(name: str, plan: dict[str, Any]) -> str:
    mesh = " ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one"
    usable = plan["usable_hbm_bytes"] / 2**30
    sizes = [program["memory_bytes"]["total"] for program in plan["programs"] if program["fits"]]
    memory = f"{max(sizes) / 2**30:.1f} of {usable:.1f}" if plan["fits"] else "**does not fit**"
    summary = plan["summary"]
    cells = [f"`{name}`", plan["topology"], mesh, str(summary["clips"]), memory]
    cells += [
        f"{summary[key]:.3f}" if key in summary else "" for key in ("ratio", "share_a_device")
    ]
    frozen = summary.get("frozen_flops")
    cells.append("" if frozen is None else f"{frozen / 1e12:.0f} TFLOP")
    return f"| {' | '.join(cells)} |"


def _plan(name: str) -> dict[str, Any]:
    """Plans a row in a separate process, which frees its memory when it ends."""
    words = [sys.executable, "-m", "dynamicrafter_jax.plan", *ROWS[name], "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    found = re.search(r"^\{.*\}$", done.stdout, re.M)
    if done.returncode not in (0, 1) or not found:  # 1: it does not fit, which is still a plan
        raise UserError(f"planning {name} failed: to see why, run {command(name)}")
    return json.loads(found.group())


if __name__ == "__main__":
    cli.run(main)
