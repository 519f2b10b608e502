"""The settings that the page shows, and the values it accepts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamicrafter_jax.diffusion.schedule import SPACINGS
from dynamicrafter_jax.diffusion.solvers import SOLVERS
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling.settings import SamplingSettings

IMAGE_TO_VIDEO = "Image to video"
INTERPOLATION = "Interpolation"
LOOPING = "Looping"

MODES = {
    IMAGE_TO_VIDEO: "the picture comes alive",
    INTERPOLATION: "from one picture to another",
    LOOPING: "end where it began",
}
"""Modes of generation, each with a short description."""

OWN = "quality"
"""The preset that is a model's own settings."""

MAX_SEED = 2**32 - 1
MAX_SAMPLES = 4
MAX_PROMPT = 1000  # characters; a model reads 77 tokens


@dataclass(frozen=True)
class Control:
    """One of `SamplingSettings`, as shown to users.

    Attributes:
        name: Name of the setting.
        label: Its label.
        help: What it does, in a sentence.
        low: Least value, for a number.
        high: Largest value, for a number.
        step: Step of the slider, for a number; 1 for whole numbers.
        choices: The values to choose from, for a text; empty for any.
        optional: Whether it may be unset, which is shown as 0.
    """

    name: str
    label: str
    help: str
    low: float | int = 0
    high: float | int = 0
    step: float | int = 0
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """Whether its value is a number rather than a text."""
        return self.step > 0

    def check(self, value: Any) -> Any:
        """Returns a value converted for the sampler.

        Raises:
            UserError: The value has the wrong type, or is not allowed.
        """
        if not self.is_number:
            return self._check_text(value)
        if self.optional and value in (None, 0) and value is not False:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.label} is {_short(value)}: give a number")
        if not self.low <= value <= self.high:  # written like this, NaN fails
            raise UserError(
                f"{self.label} is {_short(value)}: give {self.low:g} to {self.high:g} on this page"
            )
        if self.step < 1:
            return float(value)
        if value != math.floor(value):
            raise UserError(f"{self.label} is {_short(value)}: give a whole number")
        return int(value)

    def _check_text(self, value: Any) -> str:
        if value is None and not self.choices:
            return ""
        if not isinstance(value, str):
            raise UserError(f"{self.label} is {_short(value)}: give text")
        if self.choices and value not in self.choices:
            raise UserError(f"{self.label} is {_short(value)}: give {' or '.join(self.choices)}")
        if len(value) > MAX_PROMPT:
            raise UserError(
                f"{self.label} has {len(value)} characters: give up to {MAX_PROMPT}, of which a "
                "model reads about the first 300"
            )
        return value


PROMPT = Control("prompt", "Prompt", "What happens; empty for the picture alone.")

SEED = Control(
    "seed",
    "Seed",
    "The same seed gives the same video.",
    low=0,
    high=MAX_SEED,
    step=1,
)

NUM_SAMPLES = Control(
    "num_samples",
    "Videos",
    "How many to make at once, each from different noise.",
    low=1,
    high=MAX_SAMPLES,
    step=1,
)

CONTROLS = (
    Control(
        "solver",
        "Solver",
        "How steps are taken. DDIM is what the models were published with; the others come as far "
        "in fewer steps.",
        choices=SOLVERS,
    ),
    Control(
        "steps",
        "Steps",
        "Steps of the solver. More take longer and, up to a point, give finer detail.",
        low=1,
        high=100,
        step=1,
    ),
    Control(
        "eta",
        "Eta",
        "Fresh noise at each step, of ddim, dpmpp_2m_sde and euler_ancestral: 0 for none, 1 for as "
        "much as DDPM.",
        low=0,
        high=1,
        step=0.05,
    ),
    Control(
        "guidance_scale",
        "Guidance scale",
        "How hard to push towards the prompt. 1 is none, and twice as fast.",
        low=1,
        high=20,
        step=0.1,
    ),
    Control(
        "guidance_rescale",
        "Guidance rescale",
        "Reduces the harsh contrast of strong guidance: 0 for none, 0.7 for most.",
        low=0,
        high=1,
        step=0.05,
    ),
    Control(
        "image_guidance_scale",
        "Image guidance scale",
        "A separate scale for the picture; the other is then for the text only. 0: one for both.",
        low=0,
        high=20,
        step=0.1,
        optional=True,
    ),
    Control(
        "fps",
        "FPS condition",
        "The speed that the model is asked for: a lower value gives more motion (for the 256 model "
        "it is the stride between frames, and a higher value gives more motion).",
        low=1,
        high=60,
        step=1,
    ),
    Control(
        "video_fps",
        "Frames a second",
        "How fast the file plays. The frames stay the same.",
        low=1,
        high=60,
        step=1,
    ),
    Control(
        "spacing",
        "Spacing",
        "Which timesteps are visited. Trailing ones start from pure noise, as models trained with "
        "zero terminal SNR need, and so do Karras ones, which lie closer where little noise is "
        "left.",
        choices=SPACINGS,
    ),
    Control(
        "fit",
        "Fit",
        "Crop the picture to the model's shape, or keep it whole and give the video its shape.",
        choices=("crop", "letterbox"),
    ),
    Control("negative_prompt", "Negative prompt", "What to avoid."),
    Control(
        "deep_cache_interval",
        "Deep cache interval",
        "The whole U-Net runs at one of so many steps, and its outermost blocks at the others.",
        low=1,
        high=5,
        step=1,
    ),
    Control(
        "deep_cache_depth",
        "Deep cache depth",
        "How many outermost blocks these are: more cost more, and lose less.",
        low=1,
        high=12,
        step=1,
    ),
    Control(
        "guidance_reuse_interval",
        "Guidance reuse interval",
        "The unconditional pass runs at one of so many steps.",
        low=1,
        high=5,
        step=1,
    ),
    Control(
        "guidance_start",
        "Guidance start",
        "From which share of the steps there is guidance.",
        low=0,
        high=0.95,
        step=0.05,
    ),
    Control(
        "guidance_stop",
        "Guidance stop",
        "To which share of the steps there is guidance.",
        low=0.05,
        high=1,
        step=0.05,
    ),
)
"""The settings of a request, in the order of the page."""


def defaults(settings: SamplingSettings) -> dict[str, Any]:
    """Returns the values that controls, including the seed, show for a model's own settings."""
    values = {control.name: getattr(settings, control.name) for control in (SEED, *CONTROLS)}
    return {name: 0 if value is None else value for name, value in values.items()}


def check_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of `CONTROLS`, and the seed, converted for the sampler.

    Raises:
        UserError: A setting is missing, has the wrong type, or is not allowed on the page.
    """
    return {control.name: control.check(values.get(control.name)) for control in (SEED, *CONTROLS)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
