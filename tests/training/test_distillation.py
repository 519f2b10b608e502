"""The student's lesson, against teachers and students that are known in closed form."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import load_config, settings_of
from dynamicrafter_jax.diffusion.guidance import guide
from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import Schedule, make_grid, make_schedule
from dynamicrafter_jax.diffusion.solvers import named_solver
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training import distillation
from dynamicrafter_jax.training.distillation import (
    Lesson,
    check_sampling,
    distill,
    lesson_loss,
    sections_of,
    start_of,
)
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.settings import TrainSettings

SHAPE = (2, 3, 4, 4, 4)
BETAS = {"timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012}
SCHEDULES = {
    "v": make_schedule(
        **BETAS,
        parameterization="v",
        rescale_betas_zero_snr=True,
        use_dynamic_rescale=True,
        base_scale=0.7,
    ),
    "eps": make_schedule(
        **BETAS,
        parameterization="eps",
        rescale_betas_zero_snr=False,
        use_dynamic_rescale=False,
    ),
}
NETWORKS: Any = dict.fromkeys(Models._fields)


def normal(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE), jnp.float32)


CONDITION = Conditioning(
    text=jnp.zeros((2, 7, 4)), image=jnp.zeros((2, 3, 2, 4)), concat=normal(9), fs=jnp.ones(2)
)


def network(x: jax.Array, timestep: jax.Array) -> jax.Array:
    """A nonlinear network."""
    t = timestep.reshape(-1, 1, 1, 1, 1)
    return jnp.tanh(1.3 * x + t / 700) - 0.2 * x


@pytest.fixture(autouse=True)
def networks_are_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the parameters "unet" and "teacher" be functions of noisy latents and timestep."""

    def conditioned_unet(models, params, dropout_keys=None):
        return lambda x, timestep, condition: params["unet"](x, timestep)

    monkeypatch.setattr(conditioning, "conditioned_unet", conditioned_unet)


def loss(schedule: Schedule, substeps: int, student: Any, step: list[int], teacher=network) -> Any:
    return lesson_loss(
        Models(**NETWORKS),
        schedule,
        Lesson(4, substeps, 1.0, 0.0),
        {"unet": student, "teacher": teacher},
        CONDITION,
        normal(0),
        normal(1),
        jnp.asarray(step),
        None,
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_student_that_takes_its_teachers_steps_has_nothing_to_learn(kind):
    same, longer = (loss(SCHEDULES[kind], substeps, network, [0, 3]) for substeps in (1, 2))
    assert np.all(np.asarray(same) < 1e-8) and np.all(np.asarray(longer) > 1e-6)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_student_without_error_lands_where_its_teacher_does(kind, step):
    """What it must predict follows from the loss, and the solver takes both on their ways."""
    schedule = SCHEDULES[kind]
    fine, coarse = (make_grid(schedule, "uniform_trailing", steps) for steps in (12, 4))
    solver = named_solver("euler", kind)
    alpha, sigma = (np.float32(table[step]) for table in (coarse.alpha, coarse.sigma))
    x = alpha * normal(0) + sigma * normal(1)

    def end(of: Any, grid: Any, first: int, last: int) -> jax.Array:
        def denoise(x, timestep, index, carry):
            return of(x, timestep), carry

        rows, state = solver.coefficients(grid, 0.0), initial_state(solver, x)
        return run_steps(denoise, solver, state, rows, lambda i: 0 * x, first, last).x

    def error(prediction: jax.Array) -> jax.Array:
        return loss(schedule, 3, lambda x, timestep: prediction, [step, step]).sum()

    # The error is a constant times the square of the distance to what must be predicted.
    zero = jnp.zeros(SHAPE)
    slope = jax.grad(error)(zero)
    curvature = jnp.vdot(slope, jax.grad(error)(slope) - slope) / jnp.vdot(slope, slope)
    learned = -slope / curvature
    assert error(learned) < 1e-6 * error(zero)
    student = end(lambda x, timestep: learned, coarse, step, step + 1)
    np.testing.assert_allclose(student, end(network, fine, 3 * step, 3 * step + 3), atol=5e-5)


def test_the_gradient_is_the_students_alone():
    def total(of_student: Any, of_teacher: Any) -> Any:
        scaled = (lambda x, t, s=s: s * network(x, t) for s in (of_student, of_teacher))
        return loss(SCHEDULES["v"], 2, next(scaled), [0, 1], teacher=next(scaled)).sum()

    student, teacher = jax.grad(total, (0, 1))(1.0, 1.0)
    assert student != 0 and teacher == 0


def test_errors_are_those_of_v():
    """At every step, the loss of a v that is off by 0.1 is 0.01."""
    schedule = SCHEDULES["v"]

    def off(x, timestep):
        return network(x, timestep) + 0.1

    np.testing.assert_allclose(loss(schedule, 1, off, [0, 3]), 0.01, rtol=1e-3)


def test_a_cache_has_nothing_for_a_guided_teacher():
    rows: Any = jnp.zeros(2)
    batch = Batch(rows.astype(jnp.uint32), rows, rows, rows.astype(int), rows)
    keys = jax.random.split(jax.random.key(0), 2)
    lesson, options = Lesson(4, 2, 3.0, 0.0), {"concat": "frame", "vae_frames": 1}
    with pytest.raises(UserError, match="'distill' needs videos"):
        distill(Models(**NETWORKS), SCHEDULES["v"], {}, batch, keys, lesson=lesson, **options)


@pytest.mark.parametrize(
    "field, value",
    [
        *[("steps", 8), ("solver", "unipc"), ("spacing", "karras")],
        *[("distilled", False), ("guidance_scale", 3.0)],
    ],
)
def test_a_recipe_that_samples_otherwise_than_it_teaches_is_refused(field, value):
    config = load_config("distill_demo")
    lesson = settings_of(TrainSettings, "train", config.train).lesson
    check_sampling(lesson, SamplingSettings.from_config(config.sampling))
    config.sampling[field] = value
    config.sampling.distilled &= field != "guidance_scale"  # else that is refused by itself
    with pytest.raises(UserError, match=r"sampling\.\w+ is .*, but the student is taught"):
        check_sampling(lesson, SamplingSettings.from_config(config.sampling))


def test_a_recipe_says_where_its_teachers_guidance_ends():
    section = load_config("distill_demo").train
    assert settings_of(TrainSettings, "train", section).lesson.guidance_stop == 0.5
    for stop in (0.0, 1.5):
        with pytest.raises(UserError, match=r"distill_guidance_stop is .* above 0 and up to 1"):
            settings_of(TrainSettings, "train", section, distill_guidance_stop=stop)


def test_the_teacher_starts_as_the_unet():
    boxed = {"unet": {"out": 1}, "vae": {"in": 2}}
    assert sections_of(boxed, "distill") == {**boxed, "teacher": {"out": 1}}
    assert sections_of(boxed, "denoise") == boxed
    assert start_of("teacher/out/kernel") == "unet/out/kernel"
    assert start_of("vae/teacher/kernel") == "vae/teacher/kernel"


def nothing_is_5_and_6(monkeypatch: pytest.MonkeyPatch, conditioned_unet: Any) -> Models:
    """Networks whose text context of an empty prompt is 5, and image context of no image 6."""
    monkeypatch.setattr(conditioning, "conditioned_unet", conditioned_unet)
    monkeypatch.setattr(conditioning, "text_context", lambda *_: jnp.full((1, 7, 4), 5.0))
    monkeypatch.setattr(conditioning, "image_context", lambda *_: jnp.full((1, 3, 2, 4), 6.0))
    sizes = {"text_encoder": {"context_length": 7}, "image_encoder": {"image_size": 8}}
    sized = {name: types.SimpleNamespace(**size) for name, size in sizes.items()}
    return Models(**NETWORKS | sized)


def test_guidance_ends_within_the_teachers_run(monkeypatch):
    """Up to the share where it ends, the lesson is a guided teacher's, and after it another's."""

    def conditioned_unet(models, params, dropout_keys=None):
        return lambda x, timestep, condition: network(x, timestep) + condition.text.mean()

    models = nothing_is_5_and_6(monkeypatch, conditioned_unet)
    clips = CONDITION, normal(0), normal(1), jnp.asarray([1, 2]), None

    def losses(scale: float, stop: float) -> np.ndarray:
        lesson = Lesson(4, 2, scale, 0.0, stop)
        params = {"unet": "student", "teacher": "teacher"}
        return np.asarray(lesson_loss(models, SCHEDULES["v"], lesson, params, *clips))

    guided, plain, half = losses(3.0, 1.0), losses(1.0, 1.0), losses(3.0, 0.5)
    assert np.all(np.abs(guided - plain) > 0.1)
    np.testing.assert_allclose(half, [guided[0], plain[1]], rtol=1e-5)
    for stop, step_changes in ((0.374, True), (0.376, False)):  # its step 1 is substeps 2 and 3
        assert (abs(losses(3.0, stop)[0] - guided[0]) > 0.1) == step_changes


def test_a_guided_teacher_goes_from_an_empty_prompt_and_no_image(monkeypatch):
    seen = []

    def conditioned_unet(models, params, dropout_keys=None):
        def unet(x, timestep, condition):
            seen.append((params["unet"], condition))
            return x * condition.text.mean()

        return unet

    models = nothing_is_5_and_6(monkeypatch, conditioned_unet)
    condition = CONDITION._replace(text=jnp.full((2, 7, 4), 2.0))
    params = {"unet": "student", "teacher": "teacher"}
    predict = distillation.taught_denoiser(models, params, condition, Lesson(4, 2, 3.0, 0.0))
    found = predict(normal(0), jnp.ones(2), jnp.asarray([True, False]))
    guided = guide(2 * normal(0), 5 * normal(0), 3.0)
    np.testing.assert_allclose(found, np.stack([guided[0], 2 * normal(0)[1]]), rtol=1e-5)
    (first, conditional), (second, unconditional) = seen
    assert (first, second) == ("teacher", "teacher") and conditional is condition
    assert np.all(np.asarray(unconditional.image) == 6.0)
    assert unconditional.concat is condition.concat
