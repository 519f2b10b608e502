"""Settings of sampling that have flags of their own, which win over the config's."""

import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict

from dynamicrafter_jax.sampling.settings import SamplingSettings

SETTING_FLAGS: Mapping[str, str] = {
    "steps": "Solver steps; time is proportional to it.",
    "fps": "What the model is told: frames a second, or for i2v_256 a stride.",
    "guidance_scale": "How strongly text and image are followed; 1 for no guidance.",
    "image_guidance_scale": "The image's own scale, beside the text's.",
    "guidance_rescale": "0 to 1, against the harsh contrast of strong guidance.",
    "negative_prompt": "What to move away from.",
    "eta": "Fresh noise at each step, 0 to 1.",
    "spacing": "Which timesteps are visited: uniform or uniform_trailing.",
    "height": "Of the frames, in pixels.",
    "width": "Of the frames, in pixels.",
    "num_frames": "Of the video.",
    "video_fps": "Frames a second of the file.",
    "fit": "Pictures are cropped, or whole.",
    "seed": "Of all random draws.",
}
"""What `--help` says of each, by the names of `SamplingSettings`."""


def define_setting_flags() -> dict[str, flags.FlagHolder]:
    """Defines a flag for each of `SETTING_FLAGS`, of its field's type, unset by default."""
    kinds = get_type_hints(SamplingSettings)
    return {name: _define(name, kinds[name], said) for name, said in SETTING_FLAGS.items()}


def set_given(config: ConfigDict, given: Mapping[str, flags.FlagHolder]) -> None:
    """Sets the fields of a config's section `sampling` whose flags are given."""
    # Models converted before may lack a field, and may keep a frame rate as a whole number.
    with config.unlocked(), config.ignore_type():
        for name, flag in given.items():
            if flag.value is not None:
                config.sampling[name] = flag.value


def _define(name: str, kind: Any, said: str) -> flags.FlagHolder:
    if get_origin(kind) is Literal:
        return flags.DEFINE_enum(name, None, get_args(kind), said)
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    of_kind = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    return of_kind[kind](name, None, said)
