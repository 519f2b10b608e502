"""Tables of what each step computes anew, and guidance that follows them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SCALES, SHAPE, normal

from dynamicrafter_jax.diffusion.caches import (
    CacheTables,
    GuidanceTables,
    cache_tables,
)
from dynamicrafter_jax.diffusion.guidance import (
    GuidedCarry,
    guide,
    guide_two_scale,
    guided_denoiser,
    rescale_guidance,
)
from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import make_grid
from dynamicrafter_jax.diffusion.solvers import DDIM
from dynamicrafter_jax.errors import UserError


def tables(steps=8, num_passes=2, max_depth=12, **settings) -> CacheTables:
    return cache_tables(steps, num_passes=num_passes, max_depth=max_depth, **settings)


def steps_of(table) -> list[int]:
    return np.flatnonzero(table).tolist()


def test_by_default_nothing_is_cached():
    assert tables() == tables(num_passes=1) == CacheTables(None, None)


def test_without_guidance_there_is_none_to_leave_out():
    nothing = CacheTables(None, None)
    assert tables(num_passes=1, guidance_start=0.2, guidance_stop=0.5) == nothing
    assert tables(num_passes=1, guidance_reuse_interval=2) == nothing


def test_the_deep_part_is_run_at_one_of_so_many_steps():
    cached = tables(steps=7, num_passes=1, deep_cache_interval=3)
    assert steps_of(cached.deep) == [0, 3, 6] and cached.guidance is None
    assert steps_of(tables(deep_cache_interval=8).deep) == [0]


def test_there_is_guidance_within_its_interval():
    cached = tables(guidance_start=0.25, guidance_stop=0.75)
    assert cached.deep is None and cached.guidance is not None
    assert steps_of(cached.guidance.all_passes) == [2, 3, 4, 5]
    assert cached.guidance.kept.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    # 0.1 * 30 is not 3 in floating point.
    cached = tables(steps=30, guidance_start=0.1, guidance_stop=0.2).guidance
    assert cached is not None and steps_of(cached.all_passes) == [3, 4, 5]


def test_differences_are_reused_between_guided_steps():
    cached = tables(steps=5, guidance_reuse_interval=2).guidance
    assert cached is not None
    assert steps_of(cached.all_passes) == [0, 2, 4] and cached.kept.tolist() == [1] * 5
    within = tables(guidance_start=0.25, guidance_stop=0.75, guidance_reuse_interval=3).guidance
    assert within is not None
    assert steps_of(within.all_passes) == [2, 5]
    assert within.kept.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_equal_intervals_need_the_fewest_deep_steps():
    cached = tables(deep_cache_interval=2, guidance_reuse_interval=2)
    assert cached.guidance is not None
    assert steps_of(cached.deep) == steps_of(cached.guidance.all_passes) == [0, 2, 4, 6]


def test_no_pass_reuses_what_is_too_old_or_was_never_made():
    for deep, reuse, (begin, end) in itertools.product(
        (1, 2, 3, 5), (1, 2, 3, 4), ((0.0, 1.0), (0.2, 0.7), (0.5, 1.0))
    ):
        cached = tables(
            20,
            deep_cache_interval=deep,
            guidance_reuse_interval=reuse,
            guidance_start=begin,
            guidance_stop=end,
        )
        every = np.ones(20, bool) if cached.guidance is None else cached.guidance.all_passes
        kept = np.ones(20) if cached.guidance is None else cached.guidance.kept
        runs = np.ones(20, bool) if cached.deep is None else cached.deep
        made: dict[str, int] = {}  # by pass, the step of its deep feature
        guided: list[int] = []
        for step in range(20):
            passes = ["conditional", "other"] if every[step] else ["conditional"]
            if runs[step]:
                made |= dict.fromkeys(passes, step)
            assert all(step - made[each] < deep for each in passes)
            if every[step]:
                guided.append(step)
            elif kept[step]:
                assert step - guided[-1] < reuse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deep_cache_interval": 9}, "deep_cache_interval is 9: choose from 1 .* to 8"),
        ({"deep_cache_interval": 0}, "deep_cache_interval is 0: choose from 1"),
        ({"guidance_reuse_interval": 9}, "guidance_reuse_interval is 9: choose from 1"),
        ({"guidance_reuse_interval": 0}, "guidance_reuse_interval is 0: choose from 1"),
        ({"deep_cache_depth": 13}, "deep_cache_depth is 13: choose from 1 to 12"),
        ({"deep_cache_depth": 0}, "deep_cache_depth is 0: choose from 1 to 12"),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, "ascending order"),
        ({"guidance_start": -0.1, "guidance_stop": 0.5}, "ascending order"),
        ({"guidance_start": 0.5, "guidance_stop": 1.1}, "ascending order"),
        ({"guidance_start": 0.9, "guidance_stop": 0.95}, "none of the 8 steps is .*: widen this"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        tables(**settings)


def denoiser(x, timestep, index, condition, carry):
    """A toy that remembers how often each row was denoised, and depends on it."""
    rows = (-1, *(1,) * (x.ndim - 1))
    carry = {"runs": carry["runs"] + 1, "steps": carry["steps"] + 1}
    # Larger, it would saturate: guidance would be rescaled by a ratio of rounding errors.
    clock = 1e-3 * timestep.astype(jnp.float32) + 1e-2 * carry["runs"]
    return jnp.tanh(x + condition.reshape(rows) + clock.reshape(rows)), carry


def conditions_of(k):
    return tuple(normal(seed, 3) for seed in range(1, k + 1))


def empty_carry(k):
    inner = {"runs": jnp.zeros(3 * k), "steps": jnp.int32(0)}
    return GuidedCarry(inner, jnp.zeros((3 * (k - 1), *SHAPE[1:])))


def sample(rows, x, tables, carry, k, sequential):
    """Samples in the compiled loop."""

    @jax.jit
    def run(x, tables, carry):
        guided = guided_denoiser(
            denoiser, conditions_of(k), **SCALES, sequential=sequential, tables=tables
        )
        state = initial_state(DDIM("v"), x, carry)
        return run_steps(guided, DDIM("v"), state, rows, lambda i: 0 * x, 0, len(rows.timestep))

    return run(x, tables, carry)


def sample_by_hand(rows, x, all_passes, kept, k):
    """Samples step by step, and returns how often each pass has run as well."""
    runs = [jnp.zeros(3) for _ in range(k)]
    differences: list = []
    for index, timestep in enumerate(np.asarray(rows.timestep)):
        times = jnp.full(len(x), timestep)
        predictions = []
        for number in range(k if all_passes[index] else 1):
            carry = {"runs": runs[number], "steps": jnp.int32(0)}
            condition = conditions_of(k)[number]
            prediction, carry = denoiser(x, times, index, condition, carry)
            runs[number] = carry["runs"]
            predictions.append(prediction)
        conditional, *others = predictions
        if all_passes[index]:
            differences = [other - conditional for other in others]
        elif kept[index]:
            others = [conditional + difference for difference in differences]
        if not others:
            guided = conditional
        elif k == 2:
            guided = guide(conditional, *others, 7.5)
        else:
            guided = guide_two_scale(conditional, *others, 7.5, 2.0)
        guided = rescale_guidance(guided, conditional, 0.7) if others else guided
        row = jax.tree.map(lambda table, i=index: table[i], rows)
        x, _ = DDIM("v").step((), x, guided, row, 0 * x)
    return x, runs


@pytest.fixture
def rows(schedule_of):
    return DDIM("v").coefficients(make_grid(schedule_of("512"), "uniform_trailing", 6), 0.0)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("k", [2, 3])
def test_guidance_across_steps_is_that_of_a_loop_by_hand(rows, k, sequential, relative_error):
    all_passes = np.array([False, True, False, False, True, False])
    kept = np.array([0, 1, 1, 0, 1, 1], np.float32)
    cached = GuidanceTables(all_passes, kept)
    ours = sample(rows, normal(0), cached, empty_carry(k), k, sequential)
    wanted, runs = sample_by_hand(rows, normal(0), all_passes, kept, k)
    assert relative_error(ours.x, wanted) < 1e-5
    # Rows of a pass that did not run stay; a scalar counts every step.
    assert np.array_equal(ours.carry.denoiser["runs"].reshape(3, k), jnp.stack(runs, 1))
    assert ours.carry.denoiser["steps"] == 6
    plain, _ = sample_by_hand(rows, normal(0), np.ones(6, bool), kept, k)
    assert relative_error(ours.x, plain) > 1e-2


@pytest.mark.parametrize("k", [2, 3])
def test_guidance_at_every_step_is_guidance_without_tables(rows, k, relative_error):
    cached = GuidanceTables(np.ones(6, bool), np.ones(6, np.float32))
    ours = sample(rows, normal(0), cached, empty_carry(k), k, False)
    plain = sample(rows, normal(0), None, empty_carry(k).denoiser, k, False)
    assert relative_error(ours.x, plain.x) < 1e-6


@pytest.mark.parametrize("k", [2, 3])
def test_guidance_left_out_is_no_guidance(rows, k, relative_error):
    cached = GuidanceTables(np.zeros(6, bool), np.zeros(6, np.float32))
    ours = sample(rows, normal(0), cached, empty_carry(k), k, False)
    plain = sample(rows, normal(0), None, {"runs": jnp.zeros(3), "steps": jnp.int32(0)}, 1, False)
    assert relative_error(ours.x, plain.x) < 1e-5


def test_coarse_predictions_are_kept_in_float32():
    def coarse(x, timestep, index, condition, carry):
        y, carry = denoiser(x, timestep, index, condition, carry)
        return y.astype(jnp.bfloat16), carry

    cached = GuidanceTables(jnp.array([True, False]), jnp.ones(2))
    guided = guided_denoiser(coarse, conditions_of(2), **SCALES, tables=cached)
    first, carry = guided(normal(0), jnp.full(3, 500), jnp.int32(0), empty_carry(2))
    second, carry = guided(normal(0), jnp.full(3, 480), jnp.int32(1), carry)
    assert first.dtype == second.dtype == carry.differences.dtype == jnp.float32


def test_a_single_condition_takes_no_tables():
    cached = GuidanceTables(np.ones(6, bool), np.ones(6, np.float32))
    with pytest.raises(ValueError, match="takes no tables"):
        guided_denoiser(denoiser, conditions_of(1), **SCALES, tables=cached)
