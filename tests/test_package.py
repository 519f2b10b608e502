import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from itertools import chain
from pathlib import Path

import pytest

from dynamicrafter_jax import __main__ as commands
from dynamicrafter_jax import media

ROOT = Path(__file__).parent.parent
SOURCES = ("dynamicrafter_jax", "configs", "tests", "benchmarks")

# Runs where the wheel is all there is of the package, and writes down what it did and every file
# that it opened.
VISIT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

import importlib, json, pkgutil
from importlib import resources
from PIL import Image
import dynamicrafter_jax, dynamicrafter_jax.configs
from dynamicrafter_jax.tokenizer import tokenize

names = [module.name for module in pkgutil.iter_modules(dynamicrafter_jax.configs.__path__)]
configs = [importlib.import_module(f"dynamicrafter_jax.configs.{name}") for name in names]
assets = resources.files("dynamicrafter_jax") / "assets"
report = {
    "package": dynamicrafter_jax.__file__,
    "configs": {name: config.__file__ for name, config in zip(names, configs, strict=True)},
    "sections": [sorted(config.get_config()) for config in configs],
    "tokens": tokenize(["a boy walking on the street"])[0].tolist(),
    "photographs": {
        photograph.name: Image.open(photograph.open("rb")).convert("RGB").size
        for photograph in assets.iterdir() if photograph.name.endswith(".jpg")
    },
    "assets": sorted(asset.name for asset in assets.iterdir()),
}
report["opened"] = opened
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def python_files():
    return [*ROOT.glob("*.py"), *chain(*((ROOT / name).rglob("*.py") for name in SOURCES))]


def test_version_is_the_same_everywhere(setup):
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    _, changes = (ROOT / "CHANGELOG.md").read_text().split("\n## ", 1)
    newest = re.search(r"\d+\.\d+\.\d+", changes)
    assert citation and newest
    assert citation[1] == newest[0] == setup["metadata"]["version"]


def test_every_package_is_named_for_installation(setup):
    found = {"dynamicrafter_jax", "dynamicrafter_jax.configs"} | {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "dynamicrafter_jax").rglob("__init__.py")
    }
    assert set(setup["options"]["packages"].split()) == found


def test_files_fit_in_the_head():
    files = python_files()
    assert ROOT / "dynamicrafter_jax" / "tokenizer.py" in files
    assert [
        str(file.relative_to(ROOT))
        for file in files
        if len(file.read_text(encoding="utf-8").splitlines()) > 400
    ] == []


@pytest.mark.parametrize(
    "module",
    ["dynamicrafter_jax", "dynamicrafter_jax.pipeline", "dynamicrafter_jax.training.metrics"],
)
def test_import_needs_no_extra(module):
    extras = {"torch", "tensorflow", "gradio", "matplotlib"}
    code = f"import sys, {module}; print({extras} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources."""
    source, wheels = (tmp_path_factory.mktemp(name) for name in ("source", "wheels"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "sample.py", "train.py"):
        shutil.copy(ROOT / name, source)
    for name in ("dynamicrafter_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    build = ["build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory, wheel) -> Path:
    """A folder with the package installed from its wheel."""
    site = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    return site


@pytest.mark.slow
def test_wheel_works_outside_the_clone(site, tmp_path, golden):
    done = subprocess.run(
        [sys.executable, "-c", VISIT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert Path(report["package"]) == site / "dynamicrafter_jax" / "__init__.py"
    assert report["configs"] == {
        file.stem: str(site / "dynamicrafter_jax" / "configs" / file.name)
        for file in (ROOT / "configs").glob("*.py")
        if file.stem != "__init__"
    }
    assert all("sampling" in sections for sections in report["sections"])
    assert report["tokens"] == json.loads((golden / "tokens.json").read_text())["ids"][1]
    assert report["photographs"] == {"coffee.jpg": [600, 400], "rocket.jpg": [640, 427]}
    assert report["assets"] == sorted(os.listdir(ROOT / "dynamicrafter_jax" / "assets"))

    environment = Path(sys.prefix)  # may lie in the clone, and is not part of it
    opened = [Path(file) for file in report["opened"]]
    assert any(site in file.parents for file in opened)
    assert [
        str(file) for file in opened if ROOT in file.parents and environment not in file.parents
    ] == []


@pytest.mark.slow
def test_installed_commands_work_outside_the_clone(wheel, tmp_path):
    """In an environment of their own, which borrows all other packages from this one."""
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    install = ["pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(name: str, *flags: str) -> str:
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUMPY", "PYTH"))}
        done = subprocess.run(
            [environment / "bin" / f"dynamicrafter-{name}", *flags],
            cwd=work,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in commands.INSTALLED:
        said = run(name, "--help")
        assert "flags:" in said and ("--config" in said), name
    photograph = str(environment / "photograph.jpg")
    shutil.copy(ROOT / "dynamicrafter_jax" / "assets" / "coffee.jpg", photograph)
    flags = ("--checkpoint=demo", f"--image={photograph}", "--output=out.mp4", "--steps=1")
    assert run("sample", *flags).startswith("out.mp4: ")
    frames, _ = media.read_video(work / "out.mp4")
    assert frames.shape == (16, 64, 64, 3)
    where = "import dynamicrafter_jax as package; print(package.__file__)"
    done = subprocess.run([python, "-c", where], cwd=work, capture_output=True, text=True)
    assert environment in Path(done.stdout.strip()).parents
