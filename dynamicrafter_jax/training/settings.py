"""The config section `train`, checked."""

import dataclasses
from typing import Literal

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.unet import REMAT_POLICIES
from dynamicrafter_jax.training.freezing import trains
from dynamicrafter_jax.training.inputs import Concat

ObjectiveName = Literal["denoise", "reconstruct", "align"]
"""What a run trains by: the functions of `objectives` of these names."""

Optimizer = Literal["adamw", "muon"]
"""What makes steps of gradients; see `optimizer.make_optimizer`."""

Decay = Literal["constant", "cosine"]
"""What the learning rate does after its warm-up."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; built by `config.settings_of`.

    Attributes:
        seed: Of initial parameters, of the order and choice of clips, and of all noise.
        steps: Optimizer steps of the whole run.
        batch_size: Clips an optimizer step, over all devices.
        accumulation: Parts that a batch is worked on in, one after another, to save memory.
        trainable: What trains: a preset of `freezing.PRESETS`, or expressions of paths.
        objective: What is learned from: "denoise", "reconstruct" (the VAE) or "align" (towers).
        concat: What is concatenated to the noise: "frame", "ends", "either" or "nothing".
        ends_share: Of clips under "either", the share that both ends are given of.
        timestep_power: See `objectives.denoise`.
        kl_weight: See `objectives.reconstruct`.
        equivariance: Likewise; 0 to 1.
        temperature: See `objectives.align`.
        recall_weight: See `objectives.align`.
        remat: What the backward pass recomputes: one of `unet.REMAT_POLICIES`.
        optimizer: "adamw" or "muon".
        learning_rate: The highest.
        decay: "constant" or "cosine", to 0 at `steps`.
        warmup_steps: Steps over which the rate rises from 0.
        beta1: Of AdamW; of Muon's momentum too.
        beta2: Of AdamW.
        epsilon: Of AdamW.
        weight_decay: Of AdamW, on every parameter; of Muon, on kernels.
        clip_norm: Most that the gradient's global norm may be.
        ema_decay: Of the averaged parameters, reached slowly (`step.update_ema`); 0 keeps none.
        log_every: Steps between lines and scalars.
        checkpoint_every: Steps between checkpoints.
        keep_last: Newest checkpoints kept.
        keep_every: Checkpoints at multiples of this many steps are kept for good; None keeps none.
        validate_every: Steps between validation losses.
        validation_clips: Clips of the validation set that are used.
        sample_every: Steps between sample videos; 0 makes none.
        sample_images: Paths of their images; none takes frames of clips.
        sample_prompts: One for each of `sample_images`.
        sample_clips: How many clips give images where there are no `sample_images`.
        profile_start: First step of a profiler trace; None makes none.
        profile_steps: Steps that it covers.
    """

    seed: int
    steps: int
    batch_size: int
    accumulation: int
    trainable: str | tuple[str, ...]
    objective: ObjectiveName
    concat: Concat
    ends_share: float
    timestep_power: float
    kl_weight: float
    equivariance: float
    temperature: float
    recall_weight: float
    remat: str
    optimizer: Optimizer
    learning_rate: float
    decay: Decay
    warmup_steps: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    log_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int | None
    validate_every: int
    validation_clips: int
    sample_every: int
    sample_images: tuple[str, ...]
    sample_prompts: tuple[str, ...]
    sample_clips: int
    profile_start: int | None
    profile_steps: int

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must be above 0")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name} is {getattr(self, name)}: at least 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}: 0 or more, and below 1")
        if not 0 <= self.equivariance <= 1:
            raise UserError(f"train.equivariance is {self.equivariance}: a share of clips, 0 to 1")
        for name in ("keep_every", "profile_start"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name} is {value}: at least 1, or None for none")
        if self.seed >= 2**32:
            raise UserError(f"train.seed is {self.seed}: choose one below 2^32")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"train.batch_size is {self.batch_size}, which train.accumulation = "
                f"{self.accumulation} does not divide"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(
                f"train.remat is {self.remat!r}: choose from {', '.join(REMAT_POLICIES)}"
            )
        trains(self.trainable)
        if len(self.sample_images) != len(self.sample_prompts):
            raise UserError(
                f"train.sample_images has {len(self.sample_images)} entries, but "
                f"train.sample_prompts {len(self.sample_prompts)}: give one prompt an image"
            )


_NOT_NEGATIVE = (
    "warmup_steps",
    "weight_decay",
    "kl_weight",
    "recall_weight",
    "sample_every",
    "seed",
)
_POSITIVE = (
    "steps",
    "batch_size",
    "accumulation",
    "timestep_power",
    "temperature",
    "learning_rate",
    "epsilon",
    "clip_norm",
    "log_every",
    "checkpoint_every",
    "keep_last",
    "validate_every",
    "validation_clips",
    "sample_clips",
    "profile_steps",
)
