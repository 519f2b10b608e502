r"""Converts a release file, or a training run, into a directory of this package, and back.

    python -m dynamicrafter_jax.convert --config=i2v_512 --input=model.ckpt --output=DIRECTORY
    python -m dynamicrafter_jax.convert --input=Doubiiu/DynamiCrafter_512 --output=DIRECTORY
    python -m dynamicrafter_jax.convert --export --input=DIRECTORY --output=model.safetensors
    python -m dynamicrafter_jax.convert --input=WORKDIR --output=DIRECTORY

The last command takes the newest checkpoint of a training run, and its averaged parameters if it
has some, and says so. No command holds more than one network's parameters in memory at a time,
however large the file.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamicrafter_jax import cli

# isort: split
import jax
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax.config import DTYPES, load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.files import as_path, atomic, check_writable
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.load import open_release, origin
from dynamicrafter_jax.weights.names import find_model, known_config
from dynamicrafter_jax.weights.tensors import StoredTensor, layout_of, write_tensors
from dynamicrafter_jax.weights.write_release import EXPORT_DTYPES, Summary, export

# A folder that contains this one is a training run.
RUN_FOLDER = "checkpoints"


def convert(
    path: epath.PathLike,
    directory: epath.PathLike,
    config: ConfigDict,
    *,
    towers: epath.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Writes a release file as a converted model; `weights.converted` describes its contents.

    Args:
        path: The release file, on this machine.
        directory: Where to write the model; may be remote. It appears only once it is complete.
        config: The config of the model; parameters become `precision.param_dtype`.
        towers: As in `weights.load.load_release`.
        overwrite: Whether to replace a converted model in this directory.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Raises:
        UserError: As in `weights.load.load_release`; or the directory can't be written.
    """
    place = as_path(directory)
    _check_free(place, overwrite)
    with open_release(path, config, towers=towers, progress=progress) as release:
        sources = [source for each in release.sources for source in origin(each)]
        return _write(place, config, release.readers, release.carried, sources, overwrite)


def convert_run(
    workdir: epath.PathLike,
    directory: epath.PathLike,
    *,
    step: int | None = None,
    averaged: bool | None = None,
    overwrite: bool = False,
) -> Summary:
    """Writes a checkpoint of a training run as a converted model, which records its origin.

    Args:
        workdir: Folder of the run.
        directory: As in `convert`.
        step: Which checkpoint; None for the newest.
        averaged: Whether to take the averaged parameters; None takes them if there are any.
        overwrite: As in `convert`.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or the directory can't be written.
    """
    from dynamicrafter_jax.training.workdir import open_run

    place = as_path(directory)
    _check_free(place, overwrite)
    run = open_run(workdir, step=step, averaged=averaged)
    sources = [*run.sources, {"name": run.name, "step": run.step, "parameters": run.parameters}]
    digest = hashlib.sha256()

    def hashed(read: Callable[[], PyTree]) -> PyTree:
        tree = read()
        for leaf in jax.tree.leaves(tree):
            digest.update(np.asarray(leaf).tobytes())
        sources[-1]["sha256"] = digest.hexdigest()
        return tree

    readers = {name: functools.partial(hashed, read) for name, read in run.readers.items()}
    summary = _write(place, run.config, readers, {}, sources, overwrite)
    return dataclasses.replace(summary, taken=run.taken)


def _write(
    place: epath.Path,
    config: ConfigDict,
    readers: Mapping[str, Callable[[], PyTree]],
    carried: Mapping[str, StoredTensor],
    sources: list[dict[str, Any]],
    overwrite: bool,
) -> Summary:
    """Writes a converted model, one network at a time."""
    retired = None
    with atomic(place) as temporary:
        sizes: list[int] = []
        for section, read in readers.items():
            sizes += _save_section(converted.section_path(temporary, section), read)
        if carried:
            with (temporary / converted.CARRIED_FILE).open("wb") as file:
                layout = layout_of(carried)
                write_tensors(file, layout, ((name, carried[name].read()) for name in layout))
        converted.write_description(temporary, config, sources)
        if overwrite and place.exists():
            retired = place.rename(files.beside(place))
    if retired is not None:
        retired.rmtree()
    return Summary(len(sizes), sum(sizes), len(carried))


def _check_free(place: epath.Path, overwrite: bool) -> None:
    """Checks early that a converted model can be written at `place`."""
    if not place.is_dir() or not any(place.iterdir()):
        check_writable(place, folder=True)
    elif not overwrite:
        raise UserError(f"{place} exists: give another path, or set overwrite")
    elif not (place / converted.CONFIG_FILE).exists():
        raise UserError(
            f"{place} is not a converted model, so it is not overwritten: give another path"
        )


def _save_section(place: epath.Path, read: Callable[[], PyTree]) -> list[int]:
    """Saves the parameters of a network and frees them; returns the size of each."""
    tree = read()
    converted.save_tree(place, tree)
    return [leaf.size for leaf in jax.tree.leaves(tree)]


def define_flags() -> dict[str, flags.FlagHolder | cli.ConfigFlag]:
    """Defines the command's flags, in a function so that other entry points don't inherit them."""
    return {
        "config": cli.define_config(),
        "input": flags.DEFINE_string(
            "input", None, "Release file, Hub id or run; with --export, a directory."
        ),
        "output": flags.DEFINE_string("output", None, "Directory; with --export, a file."),
        "dtype": flags.DEFINE_enum("dtype", None, list(DTYPES), "Type of parameters."),
        "towers": flags.DEFINE_string("towers", None, "Source of missing frozen networks."),
        "overwrite": flags.DEFINE_bool("overwrite", False, "Replace what is at --output."),
        "step": flags.DEFINE_integer("step", None, "A run's checkpoint; by default the newest."),
        "averaged": flags.DEFINE_bool(
            "averaged", None, "Take a run's averaged parameters; by default if it has any."
        ),
        "export": flags.DEFINE_bool("export", False, "Write a release file from a directory."),
        "export_dtype": flags.DEFINE_enum(
            "export_dtype", None, list(EXPORT_DTYPES), "Type of exported tensors."
        ),
    }


def main(holders: Mapping[str, flags.FlagHolder | cli.ConfigFlag], _: Sequence[str]) -> None:
    """Converts or exports according to the flags, and prints a summary in one line."""
    given: dict[str, Any] = {name: holder.value for name, holder in holders.items()}
    config = holders["config"]
    assert isinstance(config, cli.ConfigFlag)
    if config.settings and given["config"] is None:
        if given["input"] is None or known_config(given["input"]) is None:
            raise UserError("--config.SECTION.FIELD needs --config, the config of the model")
        given["config"] = config.of_model(given["input"])
    run(given)


def run(given: Mapping[str, Any]) -> None:
    """Converts or exports, and prints a summary in one line.

    Args:
        given: The values of the flags in `define_flags`; None or False if not given.

    Raises:
        UserError: Flags don't go together; or as in `convert` and `export`.
    """
    started = time.perf_counter()
    for name in ("input", "output"):
        if not given[name]:
            raise UserError(f"no --{name}: give the file or directory")
    # Nothing is computed, and a network may not fit on an accelerator.
    jax.config.update("jax_platforms", "cpu")
    source, output, overwrite = given["input"], given["output"], given["overwrite"]
    is_run = (as_path(source) / RUN_FOLDER).is_dir()
    if not is_run:
        _refuse(given, "step", "averaged", reason="is only for training runs")
    if given["export"]:
        _refuse(given, "config", "dtype", "towers", reason="does not go with --export")
        dtype = given["export_dtype"]
        summary = export(source, output, dtype=dtype, overwrite=overwrite, progress=True)
    elif is_run:
        _refuse(
            given, "config", "dtype", "towers", "export_dtype", reason="is not for training runs"
        )
        summary = convert_run(
            source, output, step=given["step"], averaged=given["averaged"], overwrite=overwrite
        )
    else:
        _refuse(given, "export_dtype", reason="needs --export")
        config, name = given["config"], known_config(source)
        if config is None and name is not None:
            config = load_config(name)
        model = find_model(source)
        if model.is_dir():
            converted.read_description(model)  # refuses other folders, and says what they are
            raise UserError(f"{source} is a converted model: to make it a file, give --export")
        if config is None:
            raise UserError(
                "no --config: give the config of the model in the file, such as i2v_1024"
            )
        if given["dtype"] is not None:
            config.precision.param_dtype = given["dtype"]
        summary = convert(
            model,
            output,
            config,
            towers=None if given["towers"] is None else find_model(given["towers"]),
            overwrite=overwrite,
            progress=True,
        )
    print(
        f"{given['output']}: {summary.parameters:,} parameters in {summary.tensors} tensors, "
        f"{summary.carried} more carried, {time.perf_counter() - started:.1f} s"
        + (f"; {summary.taken}" if summary.taken else "")
    )


def _refuse(given: Mapping[str, Any], *names: str, reason: str) -> None:
    for name in names:
        if given[name] is not None:
            raise UserError(f"--{name} {reason}")


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
