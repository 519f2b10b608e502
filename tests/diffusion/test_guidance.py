from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from toys import SCALES, SHAPE, normal

from dynamicrafter_jax.diffusion.guidance import (
    guide,
    guide_two_scale,
    guided_denoiser,
    rescale_guidance,
)
from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import make_grid
from dynamicrafter_jax.diffusion.solvers import DDIM


def condition(seed, b=3):
    return {"text": normal(seed, b, 7, 4), "fs": jnp.full((b,), seed, jnp.int32)}


STEP = jnp.int32(3)


def denoiser(x, timestep, index, condition, carry):
    """A toy in which everything of a sample, and nothing of another, counts."""
    text = condition["text"].mean(1).reshape(-1, *(1,) * (x.ndim - 2), 4)
    clock = timestep.astype(jnp.float32) + condition["fs"].astype(jnp.float32)
    # Larger, it would saturate: guidance would be rescaled by a ratio of rounding errors.
    return jnp.tanh(x + text + 1e-3 * clock.reshape(-1, *(1,) * (x.ndim - 1))), carry


@pytest.fixture
def predictions():
    return tuple(normal(seed) for seed in (1, 2, 3))


def test_scale_one_is_the_conditional_and_zero_the_unconditional(predictions, relative_error):
    conditional, _, unconditional = predictions
    assert relative_error(guide(conditional, unconditional, 1.0), conditional) < 1e-6
    assert np.array_equal(guide(conditional, unconditional, 0.0), unconditional)


def test_two_scales_follow_their_definition(predictions, relative_error):
    conditional, image, unconditional = predictions
    c, i, u = (np.asarray(each, np.float64) for each in predictions)
    wanted = u + 2 * (i - u) + 7.5 * (c - i)
    ours = guide_two_scale(conditional, image, unconditional, 7.5, 2.0)
    assert relative_error(ours, wanted) < 1e-6


def test_two_equal_scales_are_one_scale(predictions, relative_error):
    conditional, image, unconditional = predictions
    ours = guide_two_scale(conditional, image, unconditional, 7.5, 7.5)
    assert relative_error(ours, guide(conditional, unconditional, 7.5)) < 2e-6


def test_image_scale_one_leaves_the_unconditional_out(predictions, relative_error):
    conditional, image, unconditional = predictions
    ours = guide_two_scale(conditional, image, unconditional, 7.5, 1.0)
    assert relative_error(ours, guide(conditional, image, 7.5)) < 2e-6


def test_scales_may_differ_by_sample(predictions):
    scales, image_scales, phis = (jnp.array(v) for v in ([1.0, 3, 9], [2.0, 1, 0], [0.0, 0.5, 1]))

    def run(predictions, scale, image_scale, phi):
        conditional, image, unconditional = predictions
        guided = guide_two_scale(conditional, image, unconditional, scale, image_scale)
        return rescale_guidance(guided, conditional, phi)

    together = run(predictions, scales, image_scales, phis)
    for i in range(3):
        one = [each[i : i + 1] for each in predictions]
        alone = run(one, scales[i], image_scales[i], phis[i])
        np.testing.assert_allclose(together[i], alone[0], atol=2e-6)


def test_rescale_zero_is_the_identity(predictions):
    assert np.array_equal(rescale_guidance(predictions[0], predictions[1], 0.0), predictions[0])


def test_rescale_one_has_the_deviation_of_the_conditional(predictions):
    guided, conditional = 5 * predictions[0], predictions[1] + 2
    ours = np.asarray(rescale_guidance(guided, conditional, 1.0))
    wanted = np.asarray(conditional).reshape(3, -1).std(1)
    assert ours.reshape(3, -1).std(1) == pytest.approx(wanted, rel=1e-5)


def test_rescale_blends_linearly(predictions, relative_error):
    guided, conditional = 5 * predictions[0], predictions[1]
    blend = 0.7 * rescale_guidance(guided, conditional, 1.0) + 0.3 * guided
    assert relative_error(rescale_guidance(guided, conditional, 0.7), blend) < 1e-6


def test_a_constant_prediction_is_not_rescaled():
    """An untrained network, whose last layer is zero, must not turn into NaN."""
    zeros = jnp.zeros(SHAPE)
    assert np.array_equal(rescale_guidance(zeros, zeros, 0.7), zeros)


def test_bfloat16_predictions_are_combined_in_float32(predictions):
    rough = [p.astype(jnp.bfloat16) for p in predictions]
    exact = [p.astype(jnp.float32) for p in rough]
    for function in (
        lambda c, i, u: guide(c, u, 7.5),
        lambda c, i, u: guide_two_scale(c, i, u, 7.5, 2.0),
        lambda c, i, u: rescale_guidance(c, u, 0.7),
    ):
        assert function(*rough).dtype == jnp.float32
        assert np.array_equal(function(*rough), function(*exact))


def test_one_condition_is_a_plain_pass():
    x, timestep = normal(0), jnp.array([5, 6, 7], jnp.int32)
    ours, carry = guided_denoiser(denoiser, (condition(1),), **SCALES)(x, timestep, STEP, ())
    assert np.array_equal(ours, denoiser(x, timestep, STEP, condition(1), ())[0])
    assert carry == ()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("seeds", [(1, 2), (1, 2, 3)])
def test_passes_are_each_run_under_their_condition(seeds, sequential, relative_error):
    x, timestep = normal(0), jnp.array([5, 6, 7], jnp.int32)
    conditions = tuple(condition(seed) for seed in seeds)
    passes = [denoiser(x, timestep, STEP, each, ())[0] for each in conditions]
    conditional, *image, unconditional = passes
    if image:
        combined = guide_two_scale(conditional, image[0], unconditional, 7.5, 2.0)
    else:
        combined = guide(conditional, unconditional, 7.5)
    wanted = rescale_guidance(combined, conditional, 0.7)
    guided = guided_denoiser(denoiser, conditions, **SCALES, sequential=sequential)
    ours, carry = jax.jit(guided)(x, timestep, STEP, ())
    assert relative_error(ours, wanted) < 2e-6
    assert carry == ()


@pytest.mark.parametrize("k", [2, 3])
def test_sequential_passes_see_a_batch_of_one_pass_and_compile_the_denoiser_once(k):
    x, timestep = normal(0), jnp.array([5, 6, 7], jnp.int32)
    seen = []

    def watched(x, timestep, index, condition, carry):
        seen.append((x.shape[0], timestep.shape[0], condition["fs"].shape[0]))
        return denoiser(x, timestep, index, condition, carry)

    for sequential, batch in ((False, 3 * k), (True, 3)):
        seen.clear()
        conditions = tuple(condition(seed) for seed in range(k))
        guided = guided_denoiser(watched, conditions, **SCALES, sequential=sequential)
        program = str(jax.make_jaxpr(guided)(x, timestep, STEP, ()))
        assert set(seen) == {(batch, batch, batch)}
        assert program.count("tanh") == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_each_pass_of_each_sample_keeps_its_own_carry(sequential):
    def remembering(x, timestep, index, condition, carry):
        total = carry["total"] + condition["fs"].astype(jnp.float32)
        calls = carry["calls"] + index
        return x * total.reshape(-1, 1, 1, 1, 1), {"total": total, "calls": calls}

    conditions = ({"fs": jnp.array([1, 2, 3])}, {"fs": jnp.array([10, 20, 30])})
    guided = guided_denoiser(remembering, conditions, **SCALES, sequential=sequential)
    x, timestep = normal(0), jnp.array([5, 6, 7], jnp.int32)
    carry = {"total": jnp.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "calls": jnp.int32(1)}
    prediction, carry = guided(x, timestep, STEP, carry)
    np.testing.assert_allclose(carry["total"], [1.1, 10.2, 2.3, 20.4, 3.5, 30.6], rtol=1e-6)
    assert carry["calls"] == 1 + STEP, "a scalar is shared by the passes"
    totals = carry["total"].reshape(3, 2, 1, 1, 1, 1)
    combined = guide(x * totals[:, 0], x * totals[:, 1], 7.5)
    np.testing.assert_allclose(
        prediction, rescale_guidance(combined, x * totals[:, 0], 0.7), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("sequential", [False, True])
def test_changing_a_scale_or_a_condition_does_not_recompile(sequential):
    traces = []

    @jax.jit
    def run(x, conditions, guidance_scale, image_guidance_scale, guidance_rescale):
        traces.append(())
        return guided_denoiser(
            denoiser,
            conditions,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            guidance_rescale=guidance_rescale,
            sequential=sequential,
        )(x, jnp.array([5, 6, 7], jnp.int32), STEP, ())[0]

    x = normal(0)
    first = run(x, tuple(map(condition, (1, 2, 3))), 7.5, 2.0, 0.7)
    for scales in ((1.0, 2.0, 0.7), (7.5, 1.0, 0.7), (7.5, 2.0, 0.0)):
        assert not np.allclose(first, run(x, tuple(map(condition, (1, 2, 3))), *scales))
    assert not np.allclose(first, run(x, tuple(map(condition, (1, 9, 3))), 7.5, 2.0, 0.7))
    assert len(traces) == 1


def test_a_batch_split_over_devices_is_guided_without_communication():
    devices = len(jax.devices())
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    split = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("batch")))
    arguments = (
        normal(0, 2 * devices, 4, 2, 5, 4),
        jnp.arange(2 * devices),
        (condition(1, 2 * devices), condition(2, 2 * devices)),
    )

    def run(x, timestep, conditions):
        return guided_denoiser(denoiser, conditions, **SCALES)(x, timestep, STEP, ())[0]

    compiled = jax.jit(run).lower(*split(arguments)).compile()
    program = compiled.as_text()
    assert devices > 1 and program is not None
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program
    np.testing.assert_allclose(compiled(*split(arguments)), run(*arguments), atol=1e-5)


@pytest.mark.parametrize("k", [0, 4])
def test_other_numbers_of_conditions_are_refused(k):
    with pytest.raises(ValueError, match=f"not {k}"):
        guided_denoiser(denoiser, k * (condition(1),), **SCALES)


def test_three_conditions_without_an_image_scale_are_refused():
    with pytest.raises(ValueError, match="needs an image_guidance_scale"):
        guided_denoiser(denoiser, 3 * (condition(1),), guidance_scale=7.5, guidance_rescale=0.0)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_denoiser_that_answers_every_other_step_from_memory(schedule_of, sequential):
    """A cache across steps needs a carry alone: it holds what each pass predicted last."""

    def remembering(x, timestep, index, condition, carry):
        now, _ = denoiser(x, timestep, index, condition, ())
        kept = jnp.where(index % 2 == 0, now, carry)
        return kept, kept

    def sample(denoise, carry):
        guided = guided_denoiser(denoise, conditions, **SCALES, sequential=sequential)
        state = initial_state(solver, x, carry)
        return run_steps(guided, solver, state, rows, lambda i: 0 * x, 0, 5).x

    conditions = (condition(1), condition(2))
    x, schedule = normal(0), schedule_of("512")
    solver = DDIM("v")
    rows = solver.coefficients(make_grid(schedule, "uniform_trailing", 5), 0.0)
    ours = sample(remembering, jnp.zeros((2 * len(x), *x.shape[1:])))

    expected, memory = np.asarray(x), []
    for index, timestep in enumerate(np.asarray(rows.timestep)):
        if index % 2 == 0:
            memory = [
                denoiser(jnp.asarray(expected), jnp.full(len(x), timestep), index, each, ())[0]
                for each in conditions
            ]
        guided = rescale_guidance(guide(*memory, SCALES["guidance_scale"]), memory[0], 0.7)
        row = jax.tree.map(lambda table, i=index: table[i], rows)
        expected = np.asarray(solver.step((), jnp.asarray(expected), guided, row, 0 * x)[0])
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
    plain = sample(
        lambda x, timestep, index, condition, carry: denoiser(x, timestep, index, condition, carry),
        (),
    )
    assert not np.allclose(ours, plain, atol=1e-3)
