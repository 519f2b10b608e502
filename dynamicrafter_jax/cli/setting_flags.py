"""Flags for the settings of sampling, which override the config's."""

import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict

from dynamicrafter_jax.diffusion.schedule import SPACINGS
from dynamicrafter_jax.diffusion.solvers import SOLVERS
from dynamicrafter_jax.sampling.settings import SamplingSettings, preset_of

SETTING_FLAGS: Mapping[str, str] = {
    "solver": f"How steps are taken: {', '.join(SOLVERS)}.",
    "steps": "Solver steps; the time is proportional to them.",
    "fps": "The model's condition on speed: frames a second, or for i2v_256 a stride.",
    "guidance_scale": "How strongly to follow text and image; 1 for no guidance.",
    "image_guidance_scale": "A separate scale for the image, in addition to the text's.",
    "guidance_rescale": "0 to 1; reduces the harsh contrast of strong guidance.",
    "negative_prompt": "What to move away from.",
    "eta": "Fresh noise at each step, 0 to 1, of ddim, dpmpp_2m_sde and euler_ancestral.",
    "spacing": f"Which timesteps are visited: {', '.join(SPACINGS)}.",
    "height": "Height of frames, in pixels.",
    "width": "Width of frames, in pixels.",
    "num_frames": "Number of frames in the video.",
    "video_fps": "Frames a second of the file.",
    "fit": "Whether pictures are cropped or kept whole.",
    "seed": "Seed of all random draws.",
}
"""The help of each flag, by the names in `SamplingSettings`."""


def define_setting_flags() -> dict[str, flags.FlagHolder]:
    """Defines a flag for each of `SETTING_FLAGS`, of its field's type, and one for presets.

    All are unset by default.
    """
    kinds = get_type_hints(SamplingSettings)
    said = "Settings that go together: quality, balanced or fast; other flags win."
    preset = {"preset": flags.DEFINE_string("preset", None, said)}
    return preset | {name: _define(name, kinds[name], said) for name, said in SETTING_FLAGS.items()}


def set_given(config: ConfigDict, given: Mapping[str, flags.FlagHolder]) -> None:
    """Sets the fields of a config's section `sampling` whose flags are given.

    Raises:
        UserError: There is no such preset.
    """
    values = {name: flag.value for name, flag in given.items() if flag.value is not None}
    preset = values.pop("preset", None)
    named = {} if preset is None else preset_of(config.sampling, preset)
    # The configs of older models may lack a field, and may hold a frame rate as an integer.
    with config.unlocked(), config.ignore_type():
        config.sampling.update(named | values)


def _define(name: str, kind: Any, said: str) -> flags.FlagHolder:
    if get_origin(kind) is Literal:
        return flags.DEFINE_enum(name, None, get_args(kind), said)
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    of_kind = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    return of_kind[kind](name, None, said)
