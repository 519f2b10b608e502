"""How commands end: one line for what the user can mend, and nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import programs
import pytest

from dynamicrafter_jax import __main__ as commands
from dynamicrafter_jax import cli
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import quiet

ROOT = Path(__file__).parent.parent
PHOTOGRAPH = ROOT / "dynamicrafter_jax" / "assets" / "rocket.jpg"
COMMANDS = ("evaluate", "convert", "plan", "app", "artifact", "demo", "data.cache", "data.prepare")
PROGRAMS = [["sample.py"], ["train.py"], *(["-m", f"dynamicrafter_jax.{n}"] for n in COMMANDS)]


def chosen(*flags: str):
    """The config that `sample.py` takes by these flags."""
    with programs.called("sample.py", "--checkpoint=demo", *flags) as program:
        return program.names["choose_config"]("demo")


def test_settings_without_a_config_are_of_the_model_s_own():
    config = chosen("--config.sampling.steps=3", "--config.mesh.data", "-1")
    assert config.name == "demo" and config.sampling.steps == 3 and config.mesh.data == -1
    assert config.unet.model_channels == 64  # not those of another model
    assert chosen("--config.sampling.sequential_guidance").sampling.sequential_guidance is True
    assert chosen("--noconfig.data.random_frame").data.random_frame is False
    assert chosen("--config.unet.channel_mult=(1,3)").unet.channel_mult == (1, 3)
    assert chosen("--config.sampling.image_guidance_scale=2").sampling.image_guidance_scale == 2.0


def test_a_config_that_is_given_is_not_mixed_with_the_model_s():
    config = chosen("--config.sampling.steps=3", "--config=i2v_1024")  # in any order
    assert config.name == "i2v_1024" and config.sampling.steps == 3
    assert config.sampling.guidance_scale == 7.5


def test_short_flags_win_over_the_config():
    config = chosen("--steps=7", "--config.sampling.steps=3", "--fps=9.5", "--video_fps=12")
    assert config.sampling.steps == 7 and config.sampling.fps == 9.5
    assert config.sampling.video_fps == 12.0
    config = chosen("--negative_prompt=blurry", "--height=32", "--spacing=uniform", "--seed=5")
    assert config.sampling.negative_prompt == "blurry" and config.sampling.height == 32
    assert config.sampling.spacing == "uniform" and config.sampling.seed == 5
    assert chosen().sampling.seed == 0


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--config.sampling.stepz=3", "no field 'stepz' (did you mean 'steps'?)"),
        ("--config.samplin.steps=3", "no field 'samplin' (did you mean 'sampling'?)"),
        ("--config.sampling.steps.more=3", "no field 'sampling.steps.more'"),
        ("--config.sampling.steps=many", "invalid literal for int() with base 10: 'many'"),
        ("--config.sampling.steps", "Missing value for flag --config.sampling.steps"),
        ("--config.sampling=3", "Failed to parse '3'"),
        ("--noconfig.sampling.steps", "--config.sampling.steps=False"),
        ("--config.data.videos.deep=3", "data.videos.deep can not be applied"),
        ("--config=i2v_2048", "no config 'i2v_2048': give a file, or one of demo, "),
        ("--steps=0", "sampling.steps is 0: choose from 1 to 1000"),
        ("--fps=fast", "flag --fps=fast: could not convert"),
        (
            "--spacing=odd",
            "sampling.spacing is 'odd': choose from uniform, uniform_trailing, karras",
        ),
        ("--image=https://example.org/a.png", "https://example.org/a.png is a URL"),
        ("--image=https://example.org/a.png", "download the file"),
        ("--checkpoint=i2v_512", "its weights are in Doubiiu/DynamiCrafter_512"),
        ("--checkpoint=stage1", "stage1 is the name of a config, which has no weights"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, flag, said):
    output = tmp_path / "made" / "out.mp4"
    flags = ["--checkpoint=demo", f"--image={PHOTOGRAPH}", f"--output={output}"]
    assert said in programs.refused("sample.py", *flags, flag)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
@pytest.mark.parametrize(
    "error, status, said",
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (UserError("two\nlines: mend them"), 2, "error: two lines: mend them"),
    ],
)
def test_every_command_ends_readably(capsys, program, error, status, said):
    with pytest.raises(SystemExit) as ended, programs.called(*program):
        raise error
    assert ended.value.code == status and capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize(
    "words, said",
    [
        ("Unable to initialize backend 'cuda': no GPU. (set JAX_PLATFORMS='')", "'cuda': no GPU)"),
        ("", "its support is not installed"),
    ],
)
def test_devices_that_are_not_there_are_one_line(capsys, monkeypatch, words, said):
    def devices():
        raise (RuntimeError if words else AssertionError)(words)

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit) as ended, cli.ending_readably():
        jax.devices()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said in line and line.startswith("error: JAX has no device")
    assert "set it to cpu" in line and "jax[cuda13]" in line


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.ending_readably():
        raise ZeroDivisionError


def test_details_are_for_who_looks_for_a_fault(capsys, monkeypatch):
    for value, shown in (("0", False), ("1", True)):
        monkeypatch.setenv(quiet.DEBUG, value)
        with pytest.raises(SystemExit), cli.ending_readably():
            raise UserError("wrong", details="a, b and c")
        said = capsys.readouterr().err
        assert ("a, b and c" in said) == shown == ("Traceback" in said) and "error: wrong\n" in said


EARLY = """
import gc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
from dynamicrafter_jax import cli
assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3" and "jax" not in sys.modules
if sys.argv[1] == "collecting":
    gc.callbacks.append(lambda *_: gc.callbacks.clear() or signal.raise_signal(signal.SIGINT))
    gc.collect()
    import time
    time.sleep(20)
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("when", ["importing", "collecting"])
def test_ctrl_c_before_a_command_has_begun(when):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, "-c", EARLY, when],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


def test_libraries_are_quiet_unless_asked(tmp_path):
    found: dict[str, str] = {"TPU_MIN_LOG_LEVEL": "0"}
    quiet.quiet_libraries(found, tmp_path)
    assert found["TF_CPP_MIN_LOG_LEVEL"] == "3" and found["TPU_MIN_LOG_LEVEL"] == "0"
    assert found["TPU_SKIP_MDS_QUERY"] == "1"
    (tmp_path / "accel0").touch()  # on a machine with TPUs, libtpu is to look for them
    found = {}
    quiet.quiet_libraries(found, tmp_path)
    assert "TPU_SKIP_MDS_QUERY" not in found and found["TF_CPP_MIN_LOG_LEVEL"] == "3"
    found = {quiet.DEBUG: "1"}
    quiet.quiet_libraries(found, tmp_path)
    assert found == {quiet.DEBUG: "1"}


def test_commands_are_listed_with_a_line_each():
    lines = commands.listed().splitlines()
    for name in commands.INSTALLED:
        assert sum(line.startswith(f"dynamicrafter-{name} ") for line in lines) == 1
    entries = {
        ".".join(file.relative_to(ROOT / "dynamicrafter_jax").with_suffix("").parts)
        for file in (ROOT / "dynamicrafter_jax").rglob("*.py")
        if "\n    cli.run(" in file.read_text()
    }
    entries = {name.removesuffix(".__main__") for name in entries}
    assert entries - {"planning.table"} == {*commands.INSTALLED, *commands.OTHERS}
