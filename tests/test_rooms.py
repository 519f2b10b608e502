"""Imports go one way: each room knows what is below it, and nothing beside it or above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "dynamicrafter_jax"

# From the bottom up. Rooms of a line do not import each other.
ROOMS = (
    ("errors",),
    ("runtime",),
    ("media", "diffusion", "models", "tokenizer"),
    ("config",),
    ("conditioning", "sharding"),
    ("attention",),
    ("weights",),
    ("sampling",),
    ("pipeline",),
    ("cli",),
    ("data", "metrics"),
    ("training",),
    ("evaluation", "planning", "artifact", "app"),
)

# Commands compose what they need of any room; nothing imports them.
COMMANDS = (
    *("sample", "train", "convert", "evaluate", "plan", "demo", "__main__"),
    *("app.__main__", "artifact.__main__", "planning.table"),
    *("data.prepare", "data.cache.__main__", "data.synthetic.__main__"),
)


def modules() -> dict[str, Path]:
    """The files of the package, by module names without its own."""
    folder = ROOT / PACKAGE
    found = {}
    for file in folder.rglob("*.py"):
        *parents, name = file.relative_to(folder).with_suffix("").parts
        if parents[:1] != ["configs"]:
            found[".".join(parents if name == "__init__" else [*parents, name])] = file
    return found


def imports_of(file: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if f"{name}." in known else node.module for name in full}
    below = {name.removeprefix(PACKAGE).lstrip(".") for name in found if name.startswith(PACKAGE)}
    return {name for name in below if name}


KNOWN = {f"{PACKAGE}.{name}." for name in modules()}
RANKS = {room: rank for rank, line in enumerate(ROOMS) for room in line}


def forbidden(module: str, imported: set[str]) -> list[str]:
    """Those of a module's imports that do not lie below it."""
    room = module.partition(".")[0]
    others = {name: name.partition(".")[0] for name in imported}
    return sorted(
        name
        for name, other in others.items()
        if name in COMMANDS or (other != room and RANKS[other] >= RANKS[room])
    )


def test_every_room_has_its_place():
    rooms = {name.partition(".")[0] for name in modules() if name not in COMMANDS}
    assert rooms - {""} == set(RANKS)


@pytest.mark.parametrize("room", [room for line in ROOMS for room in line])
def test_nothing_is_imported_from_beside_or_above(room: str):
    here = {name: file for name, file in modules().items() if name.partition(".")[0] == room}
    upward = {
        name: found
        for name, file in here.items()
        if name not in COMMANDS and (found := forbidden(name, imports_of(file, KNOWN)))
    }
    assert upward == {}


def test_an_import_from_above_would_be_seen(tmp_path: Path):
    file = tmp_path / "unet.py"
    file.write_text(
        "from dynamicrafter_jax import convert, sharding\n"
        "from dynamicrafter_jax.models.layers import Linear\n\n\n"
        "def late():\n    import dynamicrafter_jax.diffusion.loop\n"
    )
    found = imports_of(file, KNOWN)
    assert found == {"convert", "sharding", "models.layers", "diffusion.loop"}
    assert forbidden("models.unet", found) == ["convert", "diffusion.loop", "sharding"]


def test_no_two_modules_of_a_room_import_each_other():
    known = modules()
    below = {name: imports_of(file, KNOWN) & set(known) for name, file in known.items()}
    pairs = {(a, b) for a in below for b in below[a] if a in below[b] and a < b}
    assert pairs == set()
