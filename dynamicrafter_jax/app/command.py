"""The command line of `sample.py` that makes the same frames as a request on the page."""

import shlex
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.catalogue import split_config
from dynamicrafter_jax.app.request import Request
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models

# Sections that decide the frames of a request.
_DECIDING = (*Models._fields, "diffusion", "precision", "sampling")
_OWN_CONFIG = "CONFIG.py"


def sample_command(request: Request, config: ConfigDict) -> str:
    """Returns the command, quoted for a POSIX shell.

    Pictures are named without their folder: the command is for where they lie. A setting that is
    the config's own is left out.

    Args:
        request: What was asked for.
        config: Of the model that made it.
    """
    source, given = split_config(request.model)
    settings = dict(request.settings)
    words = ["python", "sample.py"]
    seed, fit = settings.pop("seed"), settings.pop("fit")
    changed = {
        f"sampling.{name}": value
        for name, value in settings.items()
        if value != config.sampling.get(name)
    }
    if changed or given is not None:
        # With --config, the settings start from that file, not from those kept with the model.
        name, differing = _start_from(given or config.name, config)
        words.append(f"--config={name}")
        words += [f"--config.{key}={_text(value)}" for key, value in (differing | changed).items()]
    words.append(f"--checkpoint={source}")
    words.append(f"--image={request.image.name}")
    if request.end_image is not None:
        words.append(f"--end_image={request.end_image.name}")
    if request.mode == controls.LOOPING:
        words.append("--loop")
    if request.prompt:
        words.append(f"--prompt={request.prompt}")
    words.append(f"--seed={seed}")
    if fit != config.sampling.get("fit", "crop"):
        words.append(f"--fit={fit}")
    if request.num_samples > 1:
        words.append(f"--num_samples={request.num_samples}")
    return shlex.join([*words, "--output=out.mp4"])


def _start_from(name: str, config: ConfigDict) -> tuple[str, dict[str, Any]]:
    """Returns the config to name, and what the model's own has otherwise."""
    try:
        base = load_config(name)
    except UserError:  # a model of a config that does not ship
        return _OWN_CONFIG, {}
    kept = dict(_leaves(base))
    return name, {key: value for key, value in _leaves(config) if value != kept.get(key)}


def _leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    for section in _DECIDING:
        for key, value in config[section].to_dict().items():
            yield f"{section}.{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
