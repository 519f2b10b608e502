"""Progressive distillation: a student learns to take in one step what its teacher takes in several.

The student samples with `Euler` in `steps` steps and without guidance passes, and then may be the
teacher of one that takes fewer (arXiv 2202.00512). The first teacher is guided, so its student
learns guidance by the way, at the scale that it is taught with (Section 3.1, arXiv 2210.03142).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key, PyTree

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.diffusion.guidance import guide, rescale_guidance
from dynamicrafter_jax.diffusion.prediction import add_noise
from dynamicrafter_jax.diffusion.schedule import Schedule, make_grid
from dynamicrafter_jax.diffusion.solvers.euler import Euler, EulerCoefficients
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.training import inputs
from dynamicrafter_jax.training.inputs import QUARTERS, Batch, ClipLosses, Concat
from dynamicrafter_jax.training.keys import Stream, streams

TEACHER = "teacher"
"""The section of the frozen parameters that holds the teacher's U-Net."""

SPACING = "uniform_trailing"
"""Which timesteps students are taught."""


class Lesson(NamedTuple):
    """How a student is taught.

    Attributes:
        steps: Steps that the student samples in.
        substeps: Steps of the teacher in each of them.
        guidance_scale: The teacher's; 1 for a teacher that was distilled itself.
        guidance_rescale: The teacher's.
        guidance_stop: The share of the teacher's run where its guidance ends.
    """

    steps: int
    substeps: int
    guidance_scale: float
    guidance_rescale: float
    guidance_stop: float = 1.0


def check_sampling(lesson: Lesson, sampling: SamplingSettings) -> None:
    """Refuses a config whose model would not sample as it is taught to.

    Raises:
        UserError: The solver, the steps, the spacing or the guidance differ.
    """
    taught = {
        "distilled": True,
        "solver": "euler",
        "steps": lesson.steps,
        "spacing": SPACING,
        "guidance_scale": 1.0,
    }
    for name, value in taught.items():
        if (found := getattr(sampling, name)) != value:
            raise UserError(
                f"sampling.{name} is {found}, but the student is taught {value}: set "
                f"sampling.{name} to {value} (for steps, train.distill_steps may change instead)"
            )


def sections_of(boxed: dict[str, PyTree], objective: str) -> dict[str, PyTree]:
    """Returns the abstract parameters of a run by section: a teacher has a U-Net of its own."""
    return {**boxed, TEACHER: boxed["unet"]} if objective == "distill" else boxed


def start_of(path: str) -> str:
    """Returns which parameter a parameter starts as: one of the teacher, as the U-Net's."""
    section, _, rest = path.partition("/")
    return f"unet/{rest}" if section == TEACHER else path


def distill(
    models: Models,
    schedule: Schedule,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    *,
    concat: Concat,
    vae_frames: int,
    lesson: Lesson,
    share: Float32[Array, " b"] | None = None,
    dropout: bool = False,
) -> ClipLosses:
    """Returns the error of the student's step against its teacher's steps; see `lesson_loss`.

    Args:
        models: The networks.
        schedule: The noise schedule.
        params: All parameters, with the section `TEACHER`.
        batch: The clips.
        keys: A key for each clip.
        concat: What is concatenated to the noise.
        vae_frames: Frames that each device encodes at once.
        lesson: How the student is taught.
        share: See `Objective`.
        dropout: Whether to apply the student's dropout.

    Raises:
        UserError: The batch is from a cache, but the teacher is guided.
    """
    if batch.video is None and lesson.guidance_scale != 1:
        raise UserError(
            "the objective 'distill' needs videos, since its teacher reads an empty prompt and an "
            "empty picture: set data.source to videos or to synthetic:train, instead of a cache"
        )
    latents, condition, noise = inputs.noisy_clips(models, params, batch, keys, concat, vae_frames)
    if share is None:
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, lesson.steps))
        step = draw(streams(keys, Stream.TIMESTEP))
    else:  # 0 is the least noisy
        step = lesson.steps - 1 - jnp.minimum(share * lesson.steps, lesson.steps - 1).astype(int)
    dropout_keys = streams(keys, Stream.DROPOUT) if dropout else None
    loss = lesson_loss(
        models, schedule, lesson, params, condition, latents, noise, step, dropout_keys
    )
    return ClipLosses(loss, (lesson.steps - 1 - step) * QUARTERS // lesson.steps)


def lesson_loss(
    models: Models,
    schedule: Schedule,
    lesson: Lesson,
    params: PyTree,
    condition: Conditioning,
    latents: Float[Array, "b t h w z"],
    noise: Float[Array, "b t h w z"],
    step: Int[Array, " b"],
    dropout_keys: Key[Array, " b"] | None,
) -> Float32[Array, " b"]:
    """Returns the squared error of the student's x0 against the one that its teacher implies.

    The teacher takes `substeps` steps from the student's point. The x0 that takes the student
    there in one step is the target (Appendix G, arXiv 2202.00512); errors are weighted by 1 /
    (1 - alpha_bar), which for v is the error of v.

    Args:
        models: The networks.
        schedule: The noise schedule.
        lesson: How the student is taught.
        params: All parameters, with the section `TEACHER`.
        condition: What the clips are conditioned on.
        latents: Their scaled latents, without noise.
        noise: Standard normal noise.
        step: The student's step for each clip, 0 for the noisiest.
        dropout_keys: Keys of the student's dropout, or None.
    """
    taught_steps = lesson.steps * lesson.substeps
    grid = make_grid(schedule, SPACING, taught_steps)
    guided = jnp.asarray(np.arange(taught_steps) < lesson.guidance_stop * taught_steps)
    rows = Euler(schedule.parameterization, stochastic=False).coefficients(grid, 0.0)
    begin, end = step * lesson.substeps, (step + 1) * lesson.substeps
    alpha, sigma = (jnp.asarray(table, jnp.float32) for table in (grid.alpha, grid.sigma))
    x = add_noise(latents, noise, alpha[begin], sigma[begin])

    taught = taught_denoiser(models, params, condition, lesson)
    after = x
    for substep in range(lesson.substeps):
        index = begin + substep
        row, timestep = _rows(rows, index, x.ndim), jnp.asarray(rows.timestep)[index]
        x0 = row.denoised.x0(after, taught(after, timestep, guided[index]))
        after = after * row.of_x + x0 * row.of_x0
    # The student's step: after = of_x x + of_x0 x0.
    of_x = _column(sigma[end] / sigma[begin], x.ndim)
    of_x0 = _column(alpha[end], x.ndim) - of_x * _column(alpha[begin], x.ndim)
    wanted = jax.lax.stop_gradient((after - of_x * x) / of_x0)

    row = _rows(rows, begin, x.ndim)
    unet = conditioning.conditioned_unet(models, params, dropout_keys)
    predicted = row.denoised.x0(x, unet(x, jnp.asarray(rows.timestep)[begin], condition))
    scale = jnp.asarray(grid.scale, jnp.float32)[begin] / sigma[begin]
    error = jnp.square((predicted - wanted) * _column(scale, x.ndim))
    return error.mean(tuple(range(1, x.ndim)))


def taught_denoiser(
    models: Models, params: PyTree, condition: Conditioning, lesson: Lesson
) -> Callable[[Array, Array, Bool[Array, " b"]], Array]:
    """Returns the teacher's prediction, of noisy latents, timestep, and which of them to guide."""
    unet = conditioning.conditioned_unet(models, {**params, "unet": params[TEACHER]})
    if lesson.guidance_scale == 1:
        return lambda x, timestep, _: unet(x, timestep, condition)
    ids = jnp.asarray(tokenize([""], models.text_encoder.context_length))
    text = conditioning.text_context(models, params, ids)
    side = models.image_encoder.image_size
    image = conditioning.image_context(models, params, jnp.zeros((1, side, side, 3)))
    unconditional = condition._replace(
        text=jnp.broadcast_to(text, condition.text.shape),
        image=jnp.broadcast_to(image, condition.image.shape),
    )

    def predict(x: Array, timestep: Array, guided: Bool[Array, " b"]) -> Array:
        told = unet(x, timestep, condition)
        scale = jnp.where(guided, lesson.guidance_scale, 1.0)
        prediction = guide(told, unet(x, timestep, unconditional), scale)
        return rescale_guidance(prediction, told, lesson.guidance_rescale)

    return predict


def _rows(tables: EulerCoefficients, rows: Int[Array, " b"], ndim: int) -> EulerCoefficients:
    return jax.tree.map(lambda table: _column(jnp.asarray(table)[rows], ndim), tables)


def _column(values: Array, ndim: int) -> Array:
    return values.reshape(-1, *(1,) * (ndim - 1))
