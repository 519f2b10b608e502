"""The documents name what exists, and state numbers that hold."""

import ast
import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import programs
import pytest
from documents import DOCUMENTS
from ml_collections import ConfigDict

from dynamicrafter_jax.conditioning import nearest_queries
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.weights.release import PREFIXES, unused_tensors

ROOT = Path(__file__).parent.parent
FOLDERS = "dynamicrafter_jax|configs|tests|docs|benchmarks|requirements"

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
        ("-m dynamicrafter_jax.convert", "docs/converting.md"),
        ("-m dynamicrafter_jax.artifact", "docs/exporting.md"),
        ("-m dynamicrafter_jax.evaluate", "docs/evaluation.md"),
        ("-m dynamicrafter_jax.app", "docs/app.md"),
    ],
)
def test_every_flag_is_documented(program, document):
    documented = {
        flag for row in table(document, "## Flags") for flag in re.findall(r"--([\w.]+)", row[0])
    }
    file, _ = programs.split(program.split())
    assert documented == set(programs.load(file).flags)


def test_every_setting_is_documented_with_its_default():
    section = load_config("i2v_512").sampling
    documented = {}
    for names, defaults, _ in table("docs/sampling.md", "## Settings"):
        values = [default.strip("`") for default in defaults.split(", ")]
        documented |= dict(zip(re.findall(r"\w+", names), values, strict=True))
    shown = {None: "unset", "": "empty"}
    del section.presets
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
