"""How to sample: the config's section `sampling`, checked."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float32
from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config, settings_of
from dynamicrafter_jax.diffusion.schedule import SPACINGS
from dynamicrafter_jax.diffusion.solvers import SOLVERS
from dynamicrafter_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """The config section `sampling`, checked.

    Attributes:
        height: Height of frames in pixels; any number, padded internally to what networks need.
        width: Width of frames in pixels.
        num_frames: Frames in the video.
        steps: Solver steps, 1 to 1000.
        eta: Fresh noise of `ddim`, `dpmpp_2m_sde` and `euler_ancestral`, from 0 (deterministic) to
            1; the other solvers add none.
        guidance_scale: Scale of text and image together, or of the text alone if
            `image_guidance_scale` is set. 1 without the latter means no guidance.
        image_guidance_scale: Scale of the image; None for a single scale.
        guidance_rescale: 0 (none) to 1.
        spacing: Which timesteps are visited, by `diffusion.schedule.SPACINGS`.
        negative_prompt: What the unconditional pass reads.
        fps: The model's `fs` condition: frame stride (256) or FPS (512, 1024).
        video_fps: Frames a second of the written file.
        seed: Seed of all random draws.
        sequential_guidance: Whether to run one guided pass after another, to save memory.
        vae_frames: Frames that the VAE processes at once, on each device.
        fit: "crop" for pictures that fill height x width, or "letterbox" for whole pictures, which
            give videos of their aspect ratio within height x width.
        solver: One of `diffusion.solvers.SOLVERS`.
        deep_cache_interval: The whole U-Net runs at one of so many steps, and its outermost blocks
            alone at the others; 1 for the whole at every step.
        deep_cache_depth: How many outermost blocks these are; see `models.unet.UNet.reusing`.
        guidance_start: Guidance begins at this share of the run.
        guidance_stop: Guidance ends at this share of the run.
        guidance_reuse_interval: All guided passes run at one of so many steps, and the conditional
            one alone at the others, which take the differences from it; 1 for all at every step.
        distilled: Whether the model was distilled from a guided one, and takes no guidance.
    """

    height: int
    width: int
    num_frames: int
    steps: int
    eta: float
    guidance_scale: float
    image_guidance_scale: float | None
    guidance_rescale: float
    spacing: str
    negative_prompt: str
    fps: float
    video_fps: float
    seed: int
    sequential_guidance: bool
    vae_frames: int
    fit: Literal["crop", "letterbox"] = "crop"
    solver: str = "ddim"
    deep_cache_interval: int = 1
    deep_cache_depth: int = 1
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    guidance_reuse_interval: int = 1
    distilled: bool = False

    def __post_init__(self) -> None:
        at_least = {"height": 8, "width": 8, "num_frames": 1, "vae_frames": 1, "seed": 0, "fps": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"sampling.{name} is {getattr(self, name)}: give at least {least}")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"sampling.steps is {self.steps}: choose from 1 to 1000")
        if self.seed >= 2**32:
            raise UserError(f"sampling.seed is {self.seed}: choose one below 2^32")
        if self.video_fps <= 0:
            raise UserError(f"sampling.video_fps is {self.video_fps}: it must be above 0")
        if not 0 <= self.eta <= 1:
            raise UserError(
                f"sampling.eta is {self.eta}: choose from 0 (deterministic) to 1 (as noisy as DDPM)"
            )
        for name, names in {"spacing": SPACINGS, "solver": SOLVERS}.items():
            if getattr(self, name) not in names:
                raise UserError(
                    f"sampling.{name} is {getattr(self, name)!r}: choose from {', '.join(names)}"
                )
        if self.distilled and self.num_passes > 1:
            raise UserError(
                "this model was distilled from a guided one, and takes no guidance: leave "
                "sampling.guidance_scale at 1 and image_guidance_scale unset"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(
                f"sampling.guidance_rescale is {self.guidance_rescale}: choose from 0 to 1"
            )
        for name in ("guidance_scale", "image_guidance_scale", "fps", "video_fps"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise UserError(f"sampling.{name} is not a finite number")

    @classmethod
    def from_config(
        cls, section: ConfigDict, *, preset: str | None = None, **overrides: object
    ) -> "SamplingSettings":
        """Builds settings from a config section, some of them overridden.

        Args:
            section: The config section `sampling`.
            preset: One of its presets, whose settings replace the section's.
            **overrides: Settings that replace both.

        Raises:
            UserError: A name is unknown or missing, or a value is out of range.
        """
        named = {} if preset is None else preset_of(section, preset)
        own = ConfigDict({name: section[name] for name in section if name != "presets"})
        return settings_of(cls, "sampling", own, **(named | overrides))

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and number of frames, on which the compiled programs depend."""
        return self.height, self.width, self.num_frames

    @property
    def num_passes(self) -> int:
        """Passes of the U-Net per step: 1 without guidance, 2 with it, or 3 with two scales."""
        if self.image_guidance_scale is not None:
            return 3
        return 1 if self.guidance_scale == 1 else 2

    @property
    def passes_at_once(self) -> int:
        """Passes that the U-Net runs as one batch at every step: 1 where some run one alone."""
        whole = self.guidance_reuse_interval == 1
        whole &= (self.guidance_start, self.guidance_stop) == (0, 1)
        return self.num_passes if whole and not self.sequential_guidance else 1


def preset_names(section: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the presets in the config section `sampling`, most steps first."""
    steps = {name: own.get("steps", section.steps) for name, own in _presets(section).items()}
    return tuple(sorted(steps, key=lambda name: -steps[name]))


def preset_of(section: ConfigDict, name: str) -> dict[str, object]:
    """Returns the settings that a preset replaces.

    Args:
        section: The config section `sampling`.
        name: Name of the preset.

    Raises:
        UserError: There is no such preset.
    """
    presets = _presets(section)
    if name not in presets:
        raise UserError(
            f"preset {name!r} is unknown: choose from {', '.join(preset_names(section))}"
        )
    return dict(presets[name])


def _presets(section: ConfigDict) -> ConfigDict:
    # The configs of older models have none.
    return section.get("presets") or load_config("i2v_512").sampling.presets


class GuidanceScales(NamedTuple):
    """Traced guidance scales, one per clip: changing one does not recompile."""

    text: Float32[Array | np.ndarray, " *b"]
    image: Float32[Array | np.ndarray, " *b"]
    rescale: Float32[Array | np.ndarray, " *b"]

    @classmethod
    def per_clip(cls, settings: Sequence[SamplingSettings]) -> "GuidanceScales":
        """Builds the scales from the settings of each clip in a batch."""
        rows = [
            (one.guidance_scale, one.image_guidance_scale or 0.0, one.guidance_rescale)
            for one in settings
        ]
        return cls(*np.asarray(rows, np.float32).T)
