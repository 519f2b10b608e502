import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.diffusion.prediction import target
from dynamicrafter_jax.diffusion.schedule import Grid, make_grid, spaced_timesteps
from dynamicrafter_jax.diffusion.solvers.ddim import DDIM, DDIMCoefficients, ddim_coefficients
from dynamicrafter_jax.errors import UserError

NAN_IN_THE_RELEASE = [7, 11, 14, 15, 20, 25, 33, 34, 35, 37, 38, 39]


@pytest.mark.parametrize("name", ["256", "512", "1024"])
@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
@pytest.mark.parametrize("steps", [5, 10, 25, 30, 50])
def test_tables_are_the_release_ones(golden, relative_error, schedule_of, name, spacing, steps):
    tables = np.load(golden / "schedule.npz")
    ours = ddim_coefficients(make_grid(schedule_of(name), spacing, steps), 1.0)
    for column, key in {
        "timestep": "ts",
        "alpha_bar": "alphas",
        "alpha_bar_prev": "alphas_prev",
        "sigma": "sigmas",
    }.items():
        table = tables[f"{key}_{name}_{spacing}_{steps}"][::-1]
        assert relative_error(getattr(ours, column), table) < 1e-6, column


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
@pytest.mark.parametrize("name", ["256", "512"])
def test_noise_of_every_number_of_steps_adds_up(schedule_of, name, spacing, eta):
    """The marginals need direction^2 + sigma^2 = 1 - alpha_bar_prev at every row."""
    schedule = schedule_of(name)
    for steps in range(1, 1001):
        rows = ddim_coefficients(make_grid(schedule, spacing, steps), eta)
        direction, sigma, alpha_bar_prev = (
            table.astype(np.float64) for table in (rows.direction, rows.sigma, rows.alpha_bar_prev)
        )
        assert np.abs(direction**2 + sigma**2 + alpha_bar_prev - 1).max() < 3e-7, steps


@pytest.mark.parametrize("steps", [*NAN_IN_THE_RELEASE, 1, 50, 999, 1000])
def test_nothing_of_pure_noise_is_kept_with_eta_one(schedule_of, steps):
    timesteps = spaced_timesteps("uniform_trailing", steps)
    rows = ddim_coefficients(Grid.at(schedule_of("512"), timesteps), 1.0)
    assert rows.timestep[0] == 999 and rows.alpha_bar[0] == 0
    assert rows.direction[0] == 0
    # All noise is fresh: exactly as much as the next timestep holds.
    assert rows.sigma[0] == pytest.approx(np.sqrt(1 - rows.alpha_bar_prev[0]), rel=2e-5)
    assert np.all(rows.direction[1:] > 0)


def test_eta_zero_adds_no_noise(schedule_of):
    rows = ddim_coefficients(make_grid(schedule_of("512"), "uniform_trailing", 25), 0.0)
    assert np.all(rows.sigma == 0)


def test_scale_ratios_lead_from_the_first_scale_to_the_last(schedule_of):
    schedule = schedule_of("1024")
    timesteps = spaced_timesteps("uniform_trailing", 10)
    rows = ddim_coefficients(Grid.at(schedule, timesteps), 1.0)
    wanted = [
        schedule.scale[max(t - 100, timesteps[0])] / schedule.scale[t] for t in timesteps[::-1]
    ]
    assert rows.scale_ratio == pytest.approx(wanted, rel=1e-6)
    assert rows.scale_ratio[-1] == 1 and rows.scale_ratio[-2] > 1


def test_rows_are_float32(schedule_of):
    rows = ddim_coefficients(make_grid(schedule_of("512"), "uniform", 5), 0.5)
    assert [table.dtype for table in rows] == 6 * [np.float32]
    assert [table.shape for table in rows] == 6 * [(5,)]


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(schedule_of, eta):
    with pytest.raises(UserError, match=f"eta is {eta}"):
        ddim_coefficients(Grid.at(schedule_of("512"), np.array([1, 2])), eta)


@pytest.mark.parametrize("timesteps", [[3, 2], [2, 2], [-1, 5], [5, 1000]])
def test_timesteps_that_do_not_ascend_within_the_schedule_are_refused(schedule_of, timesteps):
    with pytest.raises(ValueError, match=r"must ascend strictly within 0 \.\. 999"):
        Grid.at(schedule_of("512"), np.array(timesteps))


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_one_step_is_the_update_of_the_paper(relative_error, parameterization):
    x0, eps, noise = np.random.default_rng(0).standard_normal((3, 2, 4, 3, 3, 4))
    alpha_bar, alpha_bar_prev, sigma, scale_ratio = 0.25, 0.64, 0.3, 1.25
    direction = np.sqrt(1 - alpha_bar_prev - sigma**2)
    row = DDIMCoefficients(
        timestep=jnp.float32(700),
        alpha_bar=jnp.float32(alpha_bar),
        alpha_bar_prev=jnp.float32(alpha_bar_prev),
        sigma=jnp.float32(sigma),
        direction=jnp.float32(direction),
        scale_ratio=jnp.float32(scale_ratio),
    )
    x = jnp.asarray(0.5 * x0 + np.sqrt(0.75) * eps, jnp.float32)
    levels = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    prediction = target(
        parameterization, jnp.asarray(x0, jnp.float32), jnp.asarray(eps, jnp.float32), *levels
    )
    solver = DDIM(parameterization)
    ours, state = solver.step(solver.init(x), x, prediction, row, jnp.asarray(noise, jnp.bfloat16))
    rough_noise = np.asarray(jnp.asarray(noise, jnp.bfloat16), np.float64)
    # The rescale multiplies x0 alone: neither eps nor the noise.
    wanted = 0.8 * 1.25 * x0 + direction * eps + sigma * rough_noise
    assert relative_error(ours, wanted) < 1e-6
    assert ours.dtype == jnp.float32 and state == ()
