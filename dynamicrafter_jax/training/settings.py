"""The config section `train`, checked."""

import dataclasses
from typing import Literal

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.unet import REMAT_POLICIES
from dynamicrafter_jax.training.distillation import Lesson
from dynamicrafter_jax.training.freezing import trains
from dynamicrafter_jax.training.inputs import Concat

ObjectiveName = Literal["denoise", "distill", "reconstruct", "align"]
"""What a run optimizes: the functions in `objectives` with these names."""

Optimizer = Literal["adamw", "muon"]
"""The optimizer; see `optimizer.make_optimizer`."""

Decay = Literal["constant", "cosine"]
"""What the learning rate does after its warm-up."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; built by `config.settings_of`.

    Attributes:
        seed: Seed of initial parameters, of the order and choice of clips, and of all noise.
        steps: Optimizer steps of the whole run.
        batch_size: Clips per optimizer step, over all devices.
        accumulation: Parts into which a batch is divided, processed one by one to save memory.
        trainable: What trains: a preset in `freezing.PRESETS`, or a regular expression for paths.
        objective: "denoise", "distill", "reconstruct" (the VAE) or "align" (the towers).
        concat: What is concatenated to the noise: "frame", "ends", "either" or "nothing".
        ends_share: With "either", the share of clips for which both ends are given.
        timestep_power: See `objectives.denoise`.
        kl_weight: See `objectives.reconstruct`.
        equivariance: See `objectives.reconstruct`; 0 to 1.
        temperature: See `objectives.align`.
        recall_weight: See `objectives.align`.
        remat: What the backward pass recomputes: one of `unet.REMAT_POLICIES`.
        optimizer: "adamw" or "muon".
        learning_rate: The highest learning rate.
        decay: "constant" or "cosine", to 0 at `steps`.
        warmup_steps: Steps over which the rate rises from 0.
        beta1: beta1 of AdamW; also the decay of Muon's momentum.
        beta2: beta2 of AdamW.
        epsilon: epsilon of AdamW.
        weight_decay: Weight decay, for all parameters with AdamW, and for kernels with Muon.
        clip_norm: Limit on the gradient's global norm.
        ema_decay: Decay of the averaged parameters, reached gradually (`step.update_ema`); 0 keeps
            no averages.
        log_every: Steps between lines and scalars.
        checkpoint_every: Steps between checkpoints.
        keep_last: How many of the newest checkpoints are kept.
        keep_every: Checkpoints at multiples of this many steps are never removed; None for none.
        validate_every: Steps between validation losses.
        validation_clips: Clips of the validation set that are used.
        sample_every: Steps between sample videos; 0 makes none.
        sample_images: Paths of their images; if empty, frames of clips are used.
        sample_prompts: A prompt for each of `sample_images`.
        sample_clips: How many clips to sample if there are no `sample_images`.
        profile_start: First step of a profiler trace; None makes none.
        profile_steps: Steps that it covers.
        distill_steps: Steps that a distilled model samples in.
        distill_substeps: Steps of its teacher in each of them.
        distill_guidance_scale: The teacher's; 1 for a teacher that was distilled itself.
        distill_guidance_rescale: The teacher's.
        distill_guidance_stop: The share of the teacher's run where its guidance ends.
    """

    seed: int
    steps: int
    batch_size: int
    accumulation: int
    trainable: str
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
    distill_steps: int = 4
    distill_substeps: int = 2
    distill_guidance_scale: float = 7.5
    distill_guidance_rescale: float = 0.7
    distill_guidance_stop: float = 1.0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must be above 0")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name} is {getattr(self, name)}: give at least 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"train.{name} is {getattr(self, name)}: give 0 or more, and below 1"
                )
        if self.distill_steps * self.distill_substeps > 1000:
            raise UserError(
                f"train.distill_steps is {self.distill_steps} and distill_substeps "
                f"{self.distill_substeps}: together, they may be up to 1000 steps"
            )
        if not 0 <= self.distill_guidance_rescale <= 1:
            raise UserError(
                f"train.distill_guidance_rescale is {self.distill_guidance_rescale}: choose from 0 "
                "to 1"
            )
        if not 0 < self.distill_guidance_stop <= 1:
            raise UserError(
                f"train.distill_guidance_stop is {self.distill_guidance_stop}: give a share of the "
                "run, above 0 and up to 1"
            )
        if not 0 <= self.equivariance <= 1:
            raise UserError(
                f"train.equivariance is {self.equivariance}: give a share of clips, 0 to 1"
            )
        for name in ("keep_every", "profile_start"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name} is {value}: give at least 1, or None for none")
        if self.seed >= 2**32:
            raise UserError(f"train.seed is {self.seed}: choose one below 2^32")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"train.batch_size is {self.batch_size}: give a multiple of train.accumulation, "
                f"which is {self.accumulation}"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(
                f"train.remat is {self.remat!r}: choose from {', '.join(REMAT_POLICIES)}"
            )
        trains(self.trainable)
        if len(self.sample_images) != len(self.sample_prompts):
            raise UserError(
                f"train.sample_images has {len(self.sample_images)} entries, but "
                f"train.sample_prompts {len(self.sample_prompts)}: give one prompt per image"
            )

    @property
    def lesson(self) -> Lesson:
        """How a student is taught, with the objective "distill"."""
        return Lesson(
            self.distill_steps,
            self.distill_substeps,
            self.distill_guidance_scale,
            self.distill_guidance_rescale,
            self.distill_guidance_stop,
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
    "distill_steps",
    "distill_substeps",
)
