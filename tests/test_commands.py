"""Every command and snippet of the documents: run here, or marked by what it lacks."""

import configparser
import os
import queue
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import documents
import finished_runs
import numpy as np
import programs
import pytest
import release_files
from absl import flags
from documents import Block
from PIL import Image

from dynamicrafter_jax import convert
from dynamicrafter_jax.errors import UserError

ROOT = documents.ROOT
CODE = [block for document in documents.DOCUMENTS for block in documents.code(document)]
RUN = [block for block in CODE if not block.needs]
WITH_CODE = sorted({block.document for block in RUN})
LINKED = ("sample.py", "train.py", "configs", "dynamicrafter_jax", "tests")
# Quick enough to be run each time, in this process.
QUICK = ("tests/golden_weights.py", "-c")
MODELS = ("model_512", "model_1024", "model_interp")
RUNS = ("surf", "demo")
PICTURES = ("picture.png", "a.png", "b.png", "first.png", "last.png")
# What a command reads is a stand-in, or was written by a command before it.
READ = (
    *("checkpoint", "input", "towers", "image", "end_image", "prompts", "noise", "data"),
    *("config.init.checkpoint", "config.init.towers", "config.data.source"),
)
WRITTEN = ("output", "output_dir", "workdir", "save_latents", "save_video")
# A recipe is run for as many steps as show that it begins, saves and becomes a model; videos are
# sampled in few steps, unless a command says how many, and batches and data sets have few clips.
LESS = {
    "sample.py": ["--config.sampling.steps=3"],
    "train.py": [
        f"--config.train.{flag}" for flag in ("steps=2", "batch_size=2", "sample_every=0")
    ],
    "dynamicrafter_jax.data.synthetic": ["--clips=4"],
}
# What makes the environment that tests run in already.
ACTIVATION = ["source", ".venv/bin/activate"]

every_block = pytest.mark.parametrize("block", CODE, ids=str)


def test_marks_say_what_is_known():
    marks = {need for block in CODE for need in block.needs}
    assert marks <= set(documents.NEEDS), "documents.NEEDS lists what a block may lack"


@every_block
def test_programs_are_called_as_they_can_be(block: Block):
    if block.kind == "python":
        compile(block.text, str(block), "exec")
        return
    for words in block.programs:
        programs.check(words)


@every_block
def test_other_commands_are_of_this_project(block: Block):
    makefile = (ROOT / "Makefile").read_text()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for words in block.commands if block.kind == "shell" else ():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        if Path(words[0]).name == "pip":
            extras = re.findall(r"(?:^\.|dynamicrafter-jax)\[(.*)\]", "\n".join(words), re.M)
            for extra in ",".join(extras).split(",") if extras else ():
                assert extra in setup["options.extras_require"], words
            assert all((ROOT / word).exists() for word in words if word.startswith("requirements"))


def test_commands_within_sentences_are_called_as_they_can_be():
    found = 0
    for document in documents.DOCUMENTS:
        for text in re.findall(r"`(?:\.venv/bin/)?python (.*?)`", document.read_text()):
            if "..." not in text and not re.search(r"\b[A-Z]{2,}\b", text):
                programs.check(text.split())
                found += 1
    assert found > 5


@pytest.mark.parametrize(
    "words, said",
    [
        (["sample.py", "--checkpont=demo"], "Unknown command line flag 'checkpont'"),
        (["sample.py", "--config.sampling.stepz=3"], "no field 'stepz'"),
        (["sample.py", "--config.mesh.data=many"], "invalid literal"),
        (["sample.py", "--fit=whole"], "should be one of"),
        (["sample.py", "demo"], "takes no"),
        (["-m", "dynamicrafter_jax.convert", "--inptu=a"], "Unknown command line flag 'inptu'"),
        (["-m", "dynamicrafter_jax.conver", "--input=a"], "no module"),
        (["train.py", "--config=finetune_513"], "no config 'finetune_513'"),
        (["benchmarks/parity.py", "--onyl=tiny"], "has no --onyl"),
        (["samples.py"], "there is no samples.py"),
    ],
)
def test_what_is_wrong_is_found(words, said):
    """The check of commands finds faults: it let some pass once."""
    with pytest.raises((flags.Error, UserError, AssertionError), match=said):
        programs.check(words)


def test_what_is_not_marked_can_be_run(record_property):
    """The tests below run all of it: no other kind of command may be without a mark."""
    for block in RUN:
        assert block.kind in ("shell", "python"), f"{block} needs a mark"
        for words in block.commands if block.kind == "shell" else ():
            assert words == ACTIVATION or Path(words[0]).name == "python", f"{block}: {words}"
    counts = {"run": _count(RUN), "marked": _count(CODE) - _count(RUN)}
    record_property("commands", counts)
    assert counts["run"] >= 30 and counts["run"] + counts["marked"] == _count(CODE), counts


def _count(blocks: list[Block]) -> int:
    return sum(1 if block.kind == "python" else len(block.commands) for block in blocks)


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_what_is_read_was_made_before(document: Path):
    made = {"demo", "batch.csv", *MODELS, *PICTURES, *(f"runs/{name}" for name in RUNS)}
    for words in (words for block in RUN if block.document == document for words in block.programs):
        if "dynamicrafter_jax.app" in words:  # reads a model when somebody chooses it
            continue
        for name in _values(words, READ):
            known = name.rstrip("/") in made or Path(name).parts[0] in LINKED
            assert known, f"{words} reads {name}: mark the block with what it needs"
        made |= {name.rstrip("/") for name in _values(words, WRITTEN)}
        made |= {words[2]} if words[0] == "tests/golden_weights.py" else set()
        made |= set(re.findall(r"save\('(.*?)'", words[1])) if words[0] == "-c" else set()


def _values(words: list[str], flags: tuple[str, ...]) -> list[str]:
    pairs = [word.removeprefix("--").partition("=") for word in words]
    return [value for flag, _, value in pairs if flag in flags]


def test_quick_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    found = [words for block in RUN for words in block.programs if words[0] in QUICK]
    for words in found:
        monkeypatch.setattr(sys, "argv", words)
        if words[0] == "-c":
            exec(words[1], {})
        else:
            runpy.run_path(words[0], run_name="__main__")
    assert (
        found and (tmp_path / "tiny_v.safetensors").exists() and (tmp_path / "first.npy").exists()
    )


def stand_ins(folder: Path) -> None:
    """Fills a folder with what the documents speak of: pictures, a table, small models, a run."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    draw = np.random.default_rng(0)
    table = next(
        b.text for b in documents.blocks(ROOT / "docs/sampling.md") if "id,image" in b.text
    )
    (folder / "batch.csv").write_text(table + "\n")
    for name in set(PICTURES) | set(re.findall(r"\w+\.png", table)):
        Image.fromarray(draw.integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(folder / name)
    np.save(folder / "picture.npy", draw.uniform(-1, 1, (16, 24, 3)).astype(np.float32))
    file = release_files.write(folder / "micro.safetensors", release_files.micro_tensors())
    first, *others = MODELS
    convert.convert(file, folder / first, release_files.micro())
    for name in others:
        (folder / name).symlink_to(first)
    for name in RUNS:
        finished_runs.make(folder / "runs" / name)


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_documents_run_from_top_to_bottom(document: Path, tmp_path: Path):
    stand_ins(tmp_path)
    snippets = []
    for block in (block for block in RUN if block.document == document):
        if block.kind == "python":
            snippets.append(block.text)
            continue
        for words in block.programs:
            program = words[1] if words[0] == "-m" else words[0]
            run(tmp_path, [*words, *LESS.get(program, ())])
    if snippets:
        (tmp_path / "snippets.py").write_text("\n".join(snippets))
        run(tmp_path, ["snippets.py"])


def run(folder: Path, words: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said = _listen(process) if "dynamicrafter_jax.app" in words else ""
            rest, _ = process.communicate(timeout=600)
        except BaseException:
            process.kill()
            raise
    status = 130 if "dynamicrafter_jax.app" in words else 0
    assert process.returncode == status, f"{words}: {said}{rest}"


def _listen(server: subprocess.Popen[str]) -> str:
    """Waits until the page is open, and then presses Ctrl-C."""
    output, lines = server.stdout, queue.Queue()
    assert output is not None
    threading.Thread(target=lambda: lines.put(output.readline()), daemon=True).start()
    line = lines.get(timeout=300)
    assert "the page is at http://" in line and "press Ctrl-C to stop" in line, line
    server.send_signal(signal.SIGINT)
    return line
