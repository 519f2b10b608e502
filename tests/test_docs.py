"""The documents name what exists, show commands that parse, and state numbers that hold."""

import ast
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dynamicrafter_jax.conditioning import nearest_queries
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.release import PREFIXES, unused_tensors
from dynamicrafter_jax.sampling import SamplingSettings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    if path.name != "CHANGELOG.md"
]
ENTRY_POINTS = {
    "sample.py": ["sample.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.convert": ["dynamicrafter_jax/convert.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.demo": ["dynamicrafter_jax/demo.py"],
    "dynamicrafter_jax.data.cache": ["dynamicrafter_jax/data/cache.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.data.prepare": ["dynamicrafter_jax/data/prepare.py"],
    "train.py": ["train.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.plan": ["dynamicrafter_jax/plan.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.planning.table": ["dynamicrafter_jax/planning/table.py"],
    "dynamicrafter_jax.artifact": [
        "dynamicrafter_jax/artifact/__main__.py",
        "dynamicrafter_jax/cli.py",
    ],
    "dynamicrafter_jax.data.synthetic": ["dynamicrafter_jax/data/synthetic/__main__.py"],
    "dynamicrafter_jax.app": ["dynamicrafter_jax/app/__main__.py", "dynamicrafter_jax/cli.py"],
    "dynamicrafter_jax.evaluate": ["dynamicrafter_jax/evaluate.py", "dynamicrafter_jax/cli.py"],
}
FOLDERS = "dynamicrafter_jax|configs|tests|docs|benchmarks|requirements"

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every indented command, lines joined, without what is quoted."""
    text = re.sub(r" *\\\n *", " ", document.read_text())
    for line in re.findall(r"^ {4}((?:python|make) .*)$", text, re.M):
        yield re.sub(r'"[^"]*"', '""', line.split(" #")[0]).split()


def flags_of(program: str) -> set[str]:
    """Flags by the calls that define them; importing entry points would define them here."""
    sources = [(ROOT / source).read_text() for source in ENTRY_POINTS[program]]
    found = {name for text in sources for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)}
    assert found, f"{program} defines no flags"
    return found


def table(document: str, heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without its head."""
    text = (ROOT / document).read_text()
    _, below = text.split(f"\n{heading}\n", 1)
    lines = below[below.index("\n|") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@every_document
def test_links_lead_somewhere(document):
    text = document.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {link}"


@every_document
def test_files_that_are_named_exist(document):
    named = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*[\w/])", document.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@every_document
def test_commands_have_flags_that_exist(document):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(document):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
            continue
        program, *arguments = words[2:] if words[1] == "-m" else words[1:]
        if program not in ENTRY_POINTS:
            assert program == "-c" or (ROOT / program).exists(), words
            continue
        known = flags_of(program)
        for argument in arguments:
            assert argument.startswith("--"), words
            flag, _, value = argument[2:].partition("=")
            if flag.startswith("config."):
                check_setting(flag)
            else:
                assert flag in known, f"{document.name}: no flag --{flag}"
            if flag == "config":
                load_config(ROOT / value if value.endswith(".py") else value)


def check_setting(flag: str) -> None:
    section: ConfigDict = load_config("i2v_512")
    *path, last = flag.split(".")[1:]
    for name in path:
        section = section[name]
    assert last in section, f"no setting --{flag}"


@every_document
def test_settings_that_are_named_exist(document):
    for flag in re.findall(r"--(config\.[a-z_]+\.[a-z_0-9]+)", document.read_text()):
        check_setting(flag)


@every_document
def test_python_uses_options_that_exist(document):
    options = set(inspect.signature(ImageToVideo.sample).parameters)
    options |= {field.name for field in dataclasses.fields(SamplingSettings)}
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert {keyword.arg for keyword in node.keywords} <= options


@pytest.mark.parametrize(
    "program, document",
    [
        ("sample.py", "docs/sampling.md"),
        ("dynamicrafter_jax.convert", "docs/converting.md"),
        ("dynamicrafter_jax.artifact", "docs/exporting.md"),
        ("dynamicrafter_jax.evaluate", "docs/evaluation.md"),
    ],
)
def test_every_flag_is_documented(program, document):
    rows = table(document, "## Flags")
    documented = {flag for row in rows for flag in re.findall(r"--[\w.]+", row[0])}
    flags = {f"--{flag}" for flag in flags_of(program)}
    assert documented - {"--config.SECTION.FIELD"} == flags


def test_every_setting_is_documented_with_its_default():
    section = load_config("i2v_512").sampling
    documented = {}
    for names, defaults, _ in table("docs/sampling.md", "## Settings"):
        values = [default.strip("`") for default in defaults.split(", ")]
        documented |= dict(zip(re.findall(r"\w+", names), values, strict=True))
    shown = {None: "unset", "": "empty"}
    assert documented == {
        name: shown.get(value, str(value)) for name, value in section.to_dict().items()
    }


def test_networks_have_as_many_parameters_as_documented(golden):
    manifest = json.loads((golden / "manifest_512.json").read_text())
    unused = unused_tensors(load_config("i2v_512").text_encoder.layers)
    counts = {
        section: sum(
            math.prod(shape)
            for name, (shape, _) in manifest.items()
            if name.startswith(f"{prefix}.") and name not in unused
        )
        for section, prefix in PREFIXES.items()
    }
    labels = {"unet": "U-Net", "projector": "projector", "vae": "VAE"}
    labels |= {"text_encoder": "text tower", "image_encoder": "vision tower"}
    wanted = {labels[section]: f"{count:,}" for section, count in counts.items()}
    wanted["all"] = f"{sum(counts.values()):,}"
    rows = table("docs/architecture.md", "## The networks")
    assert {network: count for network, count, _ in rows} == wanted


def test_frames_read_the_documented_queries():
    rows = table("docs/architecture.md", "### Other numbers of frames")
    assert len(rows) > 3
    for frames, groups in rows:
        assert nearest_queries(int(frames), 16).tolist() == [int(group) for group in groups.split()]


def test_levels_are_as_documented():
    unet = load_config("i2v_512").unet
    rows = table("docs/architecture.md", "## The U-Net")
    *levels, middle = rows
    last, per_level = len(unet.channel_mult) - 1, unet.num_res_blocks + 1
    for level, multiplier in enumerate(unet.channel_mult):
        width = multiplier * unet.model_channels
        attends = 2**level in unet.attention_resolutions

        def blocks(first: int) -> str:
            return ", ".join(str(first * per_level + i) for i in range(per_level))

        assert levels[level] == [
            str(level),
            str(width),
            f"{40 >> level} x {64 >> level}",
            str(width // unet.num_head_channels) if attends else "none",
            blocks(level),
            blocks(last - level),
        ]
    assert middle[3] == str(unet.channel_mult[-1] * unet.model_channels // unet.num_head_channels)


@pytest.mark.parametrize("room, allowed", [("models", {"models"}), ("diffusion", {"diffusion"})])
def test_inner_rooms_know_nothing_of_the_others(room, allowed):
    sources = list((ROOT / "dynamicrafter_jax" / room).glob("*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("dynamicrafter_jax"):
                    assert name.split(".")[1] in allowed | {"errors"}, f"{source.name}: {name}"
