import numpy as np
import pytest

from dynamicrafter_jax.diffusion.schedule import linear_betas, spaced_timesteps, zero_terminal_snr
from dynamicrafter_jax.errors import UserError


@pytest.mark.parametrize("name", ["256", "512", "1024"])
def test_alpha_bar_is_the_release_table(golden, relative_error, schedule_of, name):
    table = np.load(golden / "schedule.npz")[f"alphas_cumprod_{name}"]
    assert relative_error(schedule_of(name).alpha_bar, table) < 1e-6


@pytest.mark.parametrize("name", ["512", "1024"])
def test_scale_is_the_release_table(golden, relative_error, schedule_of, name):
    table = np.load(golden / "schedule.npz")[f"scale_arr_{name}"]
    assert relative_error(schedule_of(name).scale, table) < 1e-6


def test_scale_is_one_without_dynamic_rescale(schedule_of):
    assert np.array_equal(schedule_of("256").scale, np.ones(1000))


def test_zero_terminal_snr_keeps_the_start_and_ends_at_exactly_zero():
    betas = linear_betas(1000, 0.00085, 0.012)
    rescaled = zero_terminal_snr(betas)
    alpha_bar = np.cumprod(1 - rescaled)
    assert alpha_bar[-1] == 0
    assert alpha_bar[0] == pytest.approx(1 - betas[0], abs=1e-15)
    assert np.all(np.diff(alpha_bar) < 0)
    # A straight line through sqrt(alpha_bar) before: the map is affine.
    before, after = np.sqrt(np.cumprod(1 - betas)), np.sqrt(alpha_bar)
    assert np.ptp(np.diff(after) / np.diff(before)) < 1e-8


@pytest.mark.parametrize("name", ["256", "512", "1024"])
@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
@pytest.mark.parametrize("steps", [5, 10, 25, 30, 50])
def test_timesteps_are_the_release_ones(golden, name, spacing, steps):
    table = np.load(golden / "schedule.npz")[f"ts_{name}_{spacing}_{steps}"]
    assert np.array_equal(spaced_timesteps(spacing, steps), table)


def test_uniform_is_the_release_one_brought_into_range():
    for steps in range(1, 1001):
        stride = 1000 // steps
        release = np.array(range(0, 1000, stride)) + 1
        ours = spaced_timesteps("uniform", steps)
        assert len(ours) == -(-1000 // stride) == len(release), steps
        assert ours[0] >= 0 and ours[-1] <= 999 and np.all(np.diff(ours) > 0), steps
        if release[-1] <= 999:
            assert np.array_equal(ours, release), steps
        elif stride > 1:
            assert np.array_equal(ours[:-1], release[:-1]) and ours[-1] == 999, steps
        else:
            assert np.array_equal(ours, np.arange(1000)), steps


def test_uniform_trailing_is_the_release_one_with_the_length_it_says():
    for steps in range(1, 1001):
        release = np.round(np.arange(1000, 0, -1000 / steps)).astype(int)[::-1] - 1
        ours = spaced_timesteps("uniform_trailing", steps)
        assert len(ours) == steps
        assert ours[0] >= 0 and ours[-1] == 999 and np.all(np.diff(ours) > 0), steps
        assert np.array_equal(ours, release[release >= 0]), steps


@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
@pytest.mark.parametrize("timesteps", [2, 7, 10, 28])
def test_timesteps_stay_in_range_for_other_lengths(spacing, timesteps):
    for steps in range(1, timesteps + 1):
        ours = spaced_timesteps(spacing, steps, timesteps)
        assert len(ours) >= steps
        assert ours[0] >= 0 and ours[-1] < timesteps and np.all(np.diff(ours) > 0)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
def test_steps_out_of_range_are_refused(spacing, steps):
    with pytest.raises(UserError, match=rf"steps is {steps}: .* 1 to 1000"):
        spaced_timesteps(spacing, steps)


def test_unknown_spacing_is_refused():
    with pytest.raises(UserError, match="'leading': choose from uniform, uniform_trailing, karras"):
        spaced_timesteps("leading", 50)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "the noise says nothing about x0"),
        ({"parameterization": "x0"}, "parameterization is 'x0'"),
        ({"timesteps": 1}, "timesteps is 1"),
        ({"linear_start": 0.0}, r"linear_start and linear_end are 0\.0 and 0\.012"),
        ({"linear_start": 0.02}, r"0\.02 and 0\.012"),
        ({"linear_end": 1.0}, r"0\.00085 and 1\.0"),
        ({"use_dynamic_rescale": True}, "base_scale is None"),
        ({"use_dynamic_rescale": True, "base_scale": 0.0}, r"base_scale is 0\.0"),
    ],
)
def test_impossible_schedules_are_refused_with_the_reason(schedule_of, replaced, message):
    with pytest.raises(UserError, match=message):
        schedule_of("256", **replaced)
