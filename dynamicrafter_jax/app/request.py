"""Requests of the page's users, checked before anything is computed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamicrafter_jax import media
from dynamicrafter_jax.app import controls
from dynamicrafter_jax.errors import UserError


@dataclass(frozen=True)
class Request:
    """Pictures, prompt and settings of a generation.

    Attributes:
        model: Name of the model.
        mode: One of `controls.MODES`.
        image: The picture's file.
        end_image: The file of the picture to end at, in interpolation; otherwise None.
        prompt: What happens.
        num_samples: How many videos.
        settings: The seed, and a value for each of `controls.CONTROLS`.
    """

    model: str
    mode: str
    image: Path
    end_image: Path | None
    prompt: str
    num_samples: int
    settings: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `ImageToVideo.sample`."""
        return {
            "end_image": None if self.end_image is None else str(self.end_image),
            "loop": self.mode == controls.LOOPING,
            "num_samples": self.num_samples,
            **self.settings,
        }


def check_request(values: Mapping[str, Any]) -> Request:
    """Builds a request from the page's values.

    Args:
        values: Values by the names of `Request`'s fields and of the settings; they are untrusted,
            and may have any type.

    Raises:
        UserError: A value is missing or not allowed; the message says which, and what to do.
    """
    mode, image, end_image = values.get("mode"), values.get("image"), values.get("end_image")
    if not isinstance(mode, str) or mode not in controls.MODES:
        raise UserError(f"choose a mode from {', '.join(controls.MODES)}")
    if image is None:
        raise UserError("choose a picture first: upload one, or take an example")
    if mode != controls.INTERPOLATION:
        end_image = None
    elif end_image is None:
        raise UserError("interpolation also needs a picture to end at")
    model = values.get("model")
    if not isinstance(model, str) or not model:
        raise UserError("choose a model")
    return Request(
        model=model,
        mode=mode,
        image=check_picture(image),
        end_image=None if end_image is None else check_picture(end_image),
        prompt=controls.PROMPT.check(values.get("prompt")),
        num_samples=controls.NUM_SAMPLES.check(values.get("num_samples")),
        settings=controls.check_settings(values),
    )


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file that holds a whole picture.

    Its size in pixels is checked in the header, before anything is decoded.

    Raises:
        UserError: It does not hold one; the message names the file without its folder, which means
            nothing to the user who uploaded it.
    """
    file = Path(path)
    try:
        media.read_picture(file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), file.name)) from error
    return file
