"""The `sample.py` command that makes the same frames as a request on the page."""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.catalogue import split_config
from dynamicrafter_jax.app.request import Request
from dynamicrafter_jax.cli.setting_flags import SETTING_FLAGS
from dynamicrafter_jax.sampling.settings import SamplingSettings


def sample_command(request: Request, config: ConfigDict, overrides: Sequence[str] = ()) -> str:
    """Returns the command, quoted for a POSIX shell.

    Pictures are named without their folder, so the command must be run there. Settings that equal
    the config's are left out.

    Args:
        request: The request.
        config: The config of the model used.
        overrides: How the page's config differs from the model's own, e.g. "sampling.steps=25".
    """
    source, given = split_config(request.model)
    words = ["python", "sample.py"]
    if given is not None:
        words.append(f"--config={given}")
    words += [f"--config.{override}" for override in overrides]
    words.append(f"--checkpoint={source}")
    words.append(f"--image={request.image.name}")
    if request.end_image is not None:
        words.append(f"--end_image={request.end_image.name}")
    if request.mode == controls.LOOPING:
        words.append("--loop")
    if request.prompt:
        words.append(f"--prompt={request.prompt}")
    own = dataclasses.asdict(SamplingSettings.from_config(config.sampling))
    own["seed"] = None  # always include the seed
    for name, value in request.settings.items():
        if value != own[name]:
            flag = name if name in SETTING_FLAGS else f"config.sampling.{name}"
            words.append(f"--{flag}={_text(value)}")
    if request.num_samples > 1:
        words.append(f"--num_samples={request.num_samples}")
    return shlex.join([*words, "--output=out.mp4"])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
