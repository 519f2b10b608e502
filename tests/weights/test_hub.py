"""Repositories of the Hub: the real client, against a server on this machine and without one."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import hub
from dynamicrafter_jax.weights.hub import Repository

ROOT = Path(__file__).parents[2]

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="a .ckpt is not downloaded where it can't be read",
)

CONVERTED = {
    "config.json": b'{"a": "converted model"}',
    "params/unet/_METADATA": b"{}",
    "params/unet/d/0123": b"numbers",
    "carried.safetensors": b"more numbers",
    "README.md": b"words",
    "train.py": b"code",
}
REPOSITORIES = {
    "Doubiiu/DynamiCrafter_512@main": {"model.ckpt": b"release", "README.md": b"words"},
    "Doubiiu/DynamiCrafter@main": {"README.md": b"words"},
    "lab/converted@main": CONVERTED,
    "lab/file@v1": {"weights/surf.safetensors": b"surf", "config.json": b"{}", "code.py": b"code"},
    "lab/several@main": {"a.safetensors": b"a", "b.ckpt": b"b"},
    "lab/none@main": {"README.md": b"words", "config.json": b"{}"},
    "lab/closed@main": {"a.safetensors": b"a"},
}

CLIENT = """
import json, sys
from dynamicrafter_jax.weights.hub import Repository
from dynamicrafter_jax.errors import UserError

found = {}
for name in sys.argv[1:]:
    try:
        found[name] = {"path": str(Repository.parse(name).download())}
    except UserError as error:
        found[name] = {"error": str(error)}
print(json.dumps(found))
"""


def ask(home: Path, *names: str, **environment: str) -> dict[str, dict[str, str]]:
    """Downloads in a process of its own, since the client reads its environment but once."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *names],
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


KNOWN = ("Doubiiu/DynamiCrafter_512", "lab/converted", "lab/file@v1")
WRONG = (
    "Doubiiu/DynamiCrafter",
    "lab/file",
    "lab/several",
    "lab/none",
    "lab/closed",
    "lab/nowhere",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server():
    with hub_server.serve(REPOSITORIES, gated=("lab/closed",)) as (address, requests):
        yield address, requests


@pytest.fixture(scope="module")
def online(home: Path, server: tuple[str, list[str]]) -> dict[str, dict[str, str]]:
    return ask(home, *KNOWN, *WRONG, HF_ENDPOINT=server[0])


@needs_torch
def test_models_are_downloaded_into_the_cache(online, home: Path):
    release, converted, file = (Path(online[name]["path"]) for name in KNOWN)
    assert release.name == "model.ckpt" and release.read_bytes() == b"release"
    assert file.name == "surf.safetensors" and file.read_bytes() == b"surf"
    for path in (release, converted, file):
        assert home in path.parents and hub_server.COMMIT in path.parts
    found = {
        str(path.relative_to(converted)): path.read_bytes()
        for path in converted.rglob("*")
        if path.is_file()
    }
    wanted = set(CONVERTED) - {"README.md", "train.py"}
    assert found == {name: CONVERTED[name] for name in wanted}


def test_no_code_is_asked_for(online, server: tuple[str, list[str]]):
    asked = " ".join(server[1])
    assert "surf.safetensors" in asked and ".py" not in asked


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(
            "Doubiiu/DynamiCrafter",
            ["/Doubiiu/DynamiCrafter has no model.ckpt"],
            marks=needs_torch,
        ),
        ("lab/file", ["/lab/file has no revision main", "give one of its branches"]),
        ("lab/several", ["/lab/several holds several files (a.safetensors, b.ckpt): download"]),
        ("lab/none", ["/lab/none holds no model", ".safetensors, .ckpt"]),
        ("lab/closed", ["/lab/closed requires you to accept its terms", "HF_TOKEN"]),
        ("lab/nowhere", ["no file or folder lab/nowhere", "no repository http://", "HF_TOKEN"]),
    ],
)
def test_what_can_not_be_had_is_explained(online, name: str, parts: list[str]):
    error = online[name]["error"]
    assert "\n" not in error
    for part in parts:
        assert part in error


def offline_error(name: str, reason: str, address: str) -> str:
    """What is said where there is no network."""
    return {
        "Doubiiu/DynamiCrafter_1024": (
            f"there is no file or folder Doubiiu/DynamiCrafter_1024 here, and it can't be "
            f"downloaded ({reason}): download model.ckpt from "
            f"{address}/Doubiiu/DynamiCrafter_1024 on another machine, copy it to this one, and "
            "give its path with the config i2v_1024"
        ),
        "lab/surf@v2": (
            f"there is no file or folder lab/surf here, and it can't be downloaded ({reason}): "
            f"download the model from {address}/lab/surf/tree/v2 on another machine, copy it to "
            "this one, and give its path"
        ),
    }[name]


ABSENT = ("Doubiiu/DynamiCrafter_1024", "lab/surf@v2")


@needs_torch
@pytest.mark.parametrize("how", ["told", "unreachable"])
def test_without_a_network_the_cache_does(online, home: Path, how: str):
    closed = "http://127.0.0.1:9"
    environment = {"HF_ENDPOINT": closed}
    if how == "told":
        environment["HF_HUB_OFFLINE"] = "1"
    offline = ask(home, *KNOWN, *ABSENT, **environment)
    for name in KNOWN:
        assert offline[name] == online[name]
    reason = {
        "told": "HF_HUB_OFFLINE is set, and it is not in the cache",
        "unreachable": f"[Errno {errno.ECONNREFUSED}] Connection refused",
    }[how]
    for name in ABSENT:
        assert offline[name]["error"] == offline_error(name, reason, closed)


@pytest.mark.parametrize(
    ("text", "id", "revision"),
    [
        ("Doubiiu/DynamiCrafter_512", "Doubiiu/DynamiCrafter_512", None),
        ("lab/surf-1.5@v2.0", "lab/surf-1.5", "v2.0"),
        ("lab/surf@refs/pr/1", "lab/surf", "refs/pr/1"),
    ],
)
def test_ids_are_read(text: str, id: str, revision: str | None):
    assert Repository.parse(text) == Repository(id, revision)


@pytest.mark.parametrize(
    "text",
    [
        *("demo", "./lab/surf", "/lab/surf", "~/surf", "../surf", "a/b/c", "lab/", "/", ""),
        *("gs://lab/surf", "hf://lab/surf", "lab/surf.ckpt", "lab/surf.safetensors", "lab/surf@"),
        *("lab/surf\n", "lab\\surf", "-lab/surf", "lab/..", "lab/surf@../x", "lab/a b"),
    ],
)
def test_paths_are_no_ids(text: str):
    assert Repository.parse(text) is None


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """What is said where the download of a release ends with an error."""

    class Hub:
        def model_info(self, *_, **__):
            return huggingface_hub.hf_api.ModelInfo(id="x/y", siblings=[])

    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "check_readable", lambda name: None)
    with pytest.raises(UserError) as caught:
        Repository("Doubiiu/DynamiCrafter_512").download()
    return str(caught.value)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch):
    said = refuse(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert "no space for Doubiiu/DynamiCrafter_512 in" in said and "HF_HUB_CACHE" in said


def test_a_download_that_breaks_off_says_why(monkeypatch: pytest.MonkeyPatch):
    said = refuse(monkeypatch, RuntimeError("peer closed the connection\nand more advice"))
    assert "can't be downloaded (peer closed the connection): download" in said


def test_what_could_not_be_read_is_not_downloaded(monkeypatch: pytest.MonkeyPatch):
    class Hub:
        def model_info(self, *_, **__):
            return huggingface_hub.hf_api.ModelInfo(id="x/y", siblings=[])

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"model.ckpt is a PyTorch file: to read it, pip install"):
        Repository("Doubiiu/DynamiCrafter_512").download()
