"""From the checkpoints of a run to a converted model."""

import dataclasses
import hashlib
import shutil

import finished_runs
import jax
import numpy as np
import pytest
import tiny

from dynamicrafter_jax import convert
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.workdir import open_run
from dynamicrafter_jax.weights.load import load_pretrained, origin


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the micro model whose temporal layers are frozen, with checkpoints 2 and 4."""
    return finished_runs.make(tmp_path_factory.mktemp("run"))


def shift(params):
    """How far a trained and a frozen parameter are from where they began."""
    start = tiny.micro().params["unet"]
    trained = params["unet"]["out"]["bias"] - start["out"]["bias"]
    frozen = (
        params["unet"]["init_attn"]["proj_in"]["kernel"] - start["init_attn"]["proj_in"]["kernel"]
    )
    assert np.ptp(trained) < 1e-6 and not np.any(frozen)
    return round(float(trained[0]))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, -4), ({"averaged": False}, 4), ({"step": 2}, -2), ({"step": 2, "averaged": False}, 2)],
)
def test_a_checkpoint_is_read_with_what_was_frozen(workdir, options, wanted):
    run = open_run(workdir, **options)
    params = {name: run.readers[name]() for name in ("unet", "vae")}
    assert shift(params) == wanted
    assert jax.tree.all(jax.tree.map(np.array_equal, params["vae"], tiny.micro().params["vae"]))


def test_a_run_becomes_a_model(workdir, tmp_path):
    summary = convert.convert_run(workdir, tmp_path / "model")
    config, params = load_pretrained(tmp_path / "model")
    assert config.name == "micro" and shift(params) == -4
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def unet_alone(monkeypatch):
    """Makes conversions quick: of one network."""

    def opened(*args, **options):
        run = open_run(*args, **options)
        return dataclasses.replace(run, readers={"unet": run.readers["unet"]})

    monkeypatch.setattr("dynamicrafter_jax.training.workdir.open_run", opened)


@pytest.mark.parametrize(
    ("given", "step", "parameters", "said"),
    [
        ({}, 4, "averaged", "averaged parameters of step 4 (--noaveraged takes the last ones)"),
        (
            {"averaged": False, "step": 2},
            2,
            "last",
            "last parameters of step 2 (--averaged takes the averaged ones)",
        ),
    ],
)
def test_what_was_taken_is_said_and_kept(
    workdir, tmp_path, capsys, monkeypatch, given, step, parameters, said
):
    unet_alone(monkeypatch)
    flags = dict.fromkeys(["config", "dtype", "towers", "step", "averaged", "export_dtype"])
    flags |= {"input": str(workdir), "output": str(tmp_path / "model")}
    convert.run(flags | {"overwrite": False, "export": False} | given)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"; {said}" in line
    first, taken = origin(tmp_path / "model")
    assert first["name"] == "model.ckpt"
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(open_run(workdir, **given).readers["unet"]()):
        digest.update(np.asarray(leaf).tobytes())
    assert taken == {
        "name": workdir.name,
        "step": step,
        "parameters": parameters,
        "sha256": digest.hexdigest(),
    }


def test_a_run_without_averages_gives_its_last_parameters(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "ema")
    run = open_run(tmp_path / "run")
    assert run.taken == "last parameters of step 4 (it keeps no averages)"
    with pytest.raises(UserError, match="has no averaged parameters: leave out --averaged"):
        open_run(tmp_path / "run", averaged=True)


def test_what_is_not_there_is_named(workdir, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 3: choose from 2, 4"):
        open_run(workdir, step=3)
    with pytest.raises(UserError, match="does not exist"):
        open_run(tmp_path)
