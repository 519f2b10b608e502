"""Folders that people take for converted models: what they are, and what to do with them."""

import json
from typing import Any

from etils import epath

from dynamicrafter_jax.tensors import EXTENSIONS

_DESCRIPTION = "config.json"
_RELEASE = "give a file of the release's own names, as model.ckpt of Doubiiu/DynamiCrafter_512"


def describe_foreign(folder: epath.Path) -> str:
    """Says what a folder is that is no converted model; nothing if it may be a damaged one."""
    described = _read_json(folder / _DESCRIPTION)
    if (folder / "checkpoints").is_dir():
        return (
            f"{folder} is a training run: make a model of it by python -m "
            f"dynamicrafter_jax.convert --input={folder} --output=DIRECTORY"
        )
    if "train" in described:
        return f"{folder} is a training run that has no checkpoint yet: let it train on"
    if (folder / "model_index.json").exists() or "_diffusers_version" in described:
        return f"{folder} is a diffusers folder, which names its tensors in another way: {_RELEASE}"
    if "model_type" in described or "architectures" in described:
        return f"{folder} is a transformers folder, which holds other networks: {_RELEASE}"
    if (folder / _DESCRIPTION).exists():
        return ""
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(EXTENSIONS))
    if files:
        return f"{folder} is no converted model: give the path of a file in it, as {files[0]}"
    return f"{folder} is no converted model: it has no {_DESCRIPTION}"


def _read_json(file: epath.Path) -> dict[str, Any]:
    """Returns what a JSON file says; nothing where there is none, or something else in it."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
