from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.prediction import add_noise, target
from dynamicrafter_jax.diffusion.schedule import Grid, make_grid, spaced_timesteps
from dynamicrafter_jax.diffusion.solvers.ddim import DDIM, ddim_coefficients

SHAPE = (2, 4, 3, 2, 4)
NAN_IN_THE_RELEASE = [7, 11, 14, 15, 20, 25, 33]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or SHAPE), jnp.float32)


def sample(denoiser, solver, x, coefficients, noise, *, carry=()):
    """Runs all steps from noise `x`; returns the sample and the denoiser's carry."""
    state = initial_state(solver, x, carry)
    steps = jnp.shape(coefficients.timestep)[0]
    state = run_steps(denoiser, solver, state, coefficients, noise, 0, steps)
    return state.x, state.carry


def toy(xp, x, t):
    """A nonlinear denoiser for NumPy and JAX alike."""
    return xp.tanh(1.3 * x + t / 700) - 0.2 * x


def toy_denoiser(x, timestep, index, carry):
    t = timestep.astype(jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return toy(jnp, x, t), carry


def release_trajectory(schedule, timesteps, eta, x, noise):
    """DDIM as REFERENCE.md words it, in float64, step by step."""
    x = np.asarray(x, np.float64)
    for i, t in enumerate(timesteps[::-1]):
        lower = timesteps[timesteps < t]
        a = schedule.alpha_bar[t]
        a_prev = schedule.alpha_bar[lower[-1] if len(lower) else 0]
        s_prev = schedule.scale[lower[-1] if len(lower) else t]
        prediction = toy(np, x, float(t))
        if schedule.parameterization == "v":
            x0 = np.sqrt(a) * x - np.sqrt(1 - a) * prediction
            eps = np.sqrt(a) * prediction + np.sqrt(1 - a) * x
        else:
            x0, eps = (x - np.sqrt(1 - a) * prediction) / np.sqrt(a), prediction
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        direction = np.sqrt(np.clip(1 - a_prev - sigma**2, 0, None))
        x0 = x0 * s_prev / schedule.scale[t]
        x = np.sqrt(a_prev) * x0 + direction * eps + sigma * np.asarray(noise[i], np.float64)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "spacing", "steps"),
    [
        ("256", "uniform", 30),
        ("256", "uniform", 37),
        ("512", "uniform_trailing", 50),
        ("1024", "uniform_trailing", 61),
        ("1024", "uniform", 9),
    ],
)
def test_whole_runs_follow_the_reference(schedule_of, relative_error, name, spacing, steps, eta):
    schedule = schedule_of(name)
    timesteps = spaced_timesteps(spacing, steps)
    x, noise = normal(0), normal(1, len(timesteps), *SHAPE)
    rows = ddim_coefficients(Grid.at(schedule, timesteps), eta)
    ours, _ = sample(toy_denoiser, DDIM(schedule.parameterization), x, rows, lambda i: noise[i])
    wanted = release_trajectory(schedule, timesteps, eta, x, noise)
    assert relative_error(ours, wanted) < 1e-5


@pytest.mark.parametrize("steps", NAN_IN_THE_RELEASE)
def test_runs_that_are_nan_in_the_release_follow_the_reference(schedule_of, relative_error, steps):
    schedule = schedule_of("512")
    timesteps = spaced_timesteps("uniform_trailing", steps)
    x, noise = normal(0), normal(1, steps, *SHAPE)
    rows = ddim_coefficients(Grid.at(schedule, timesteps), 1.0)
    ours, _ = sample(toy_denoiser, DDIM("v"), x, rows, lambda i: noise[i])
    wanted = release_trajectory(schedule, timesteps, 1.0, x, noise)
    assert np.all(np.isfinite(ours)) and relative_error(ours, wanted) < 1e-5


def oracle(schedule, x0):
    """The denoiser that knows x0, which a rescale makes s_t x0 at timestep t."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)
    scale = jnp.asarray(schedule.scale, jnp.float32)

    def denoise(x, timestep, index, carry):
        timestep = timestep.astype(int)
        a = alpha_bar[timestep].reshape(-1, 1, 1, 1, 1)
        clean = scale[timestep].reshape(-1, 1, 1, 1, 1) * x0
        eps = (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
        levels = jnp.sqrt(alpha_bar[timestep]), jnp.sqrt(1 - alpha_bar[timestep])
        return target(schedule.parameterization, clean, eps, *levels), carry

    return denoise


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 25, 50])
@pytest.mark.parametrize("name", ["256", "512", "1024"])
def test_an_oracle_recovers_x0(schedule_of, relative_error, name, steps, eta):
    """The run ends at timestep 0, where x0 carries the scale of the lowest timestep visited.

    So it ends at sqrt(alpha_bar_0) s x0 + sqrt(1 - alpha_bar_0) e, with e the noise carried along:
    e <- (direction e + sigma noise) / sqrt(1 - alpha_bar_prev), of unit variance throughout.
    """
    schedule = schedule_of(name)
    timesteps = spaced_timesteps("uniform_trailing", steps)
    rows = ddim_coefficients(Grid.at(schedule, timesteps), eta)
    x0, eps, noise = normal(0), normal(1), normal(2, steps, *SHAPE)
    levels = schedule.signal_level[999], schedule.noise_level[999]
    start = add_noise(schedule.scale[999].astype(np.float32) * x0, eps, *levels)
    end, _ = sample(
        oracle(schedule, x0), DDIM(schedule.parameterization), start, rows, lambda i: noise[i]
    )
    for i in range(steps):
        kept, fresh = rows.direction[i] * eps, rows.sigma[i] * noise[i]
        eps = (kept + fresh) / np.sqrt(1 - rows.alpha_bar_prev[i])
    signal, remaining = np.sqrt(schedule.alpha_bar[0]), np.sqrt(1 - schedule.alpha_bar[0])
    recovered = (np.asarray(end) - remaining * np.asarray(eps)) / signal
    assert relative_error(recovered, schedule.scale[timesteps[0]] * np.asarray(x0)) < 2e-5
    assert np.asarray(eps).var() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
def test_eps_and_v_views_of_one_denoiser_agree(schedule_of, relative_error, spacing, eta):
    schedule = schedule_of("256")
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def velocity(x, timestep, index, carry):
        eps, carry = toy_denoiser(x, timestep, index, carry)
        a = alpha_bar[timestep.astype(int)].reshape(-1, 1, 1, 1, 1)
        x0 = (x - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)
        return jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * x0, carry

    rows = ddim_coefficients(make_grid(schedule, spacing, 20), eta)
    x, noise = normal(0), normal(1, 20, *SHAPE)
    as_eps, _ = sample(toy_denoiser, DDIM("eps"), x, rows, lambda i: noise[i])
    as_v, _ = sample(velocity, DDIM("v"), x, rows, lambda i: noise[i])
    assert relative_error(as_v, as_eps) < 1e-5


def normal_data_denoiser(schedule):
    """The ideal denoiser of standard normal data, whose noisy samples are standard normal too.

    E[eps | x] = sqrt(1 - alpha_bar) x and E[x0 | x] = sqrt(alpha_bar) x, hence E[v | x] = 0.
    """
    noise_level = jnp.asarray(np.sqrt(1 - schedule.alpha_bar), jnp.float32)

    def denoise(x, timestep, index, carry):
        if schedule.parameterization == "v":
            return jnp.zeros_like(x), carry
        return noise_level[timestep.astype(int)].reshape(-1, 1, 1, 1, 1) * x, carry

    return denoise


@pytest.mark.parametrize("name", ["256", "512"])
def test_deterministic_steps_on_normal_data_are_cosines_of_their_angles(
    schedule_of, relative_error, name
):
    """With alpha_bar = cos^2 of an angle, a step multiplies x by the cosine of the angle moved."""
    schedule = schedule_of(name, use_dynamic_rescale=False)
    timesteps = spaced_timesteps("uniform_trailing", 10)
    angles = np.arccos(np.sqrt(schedule.alpha_bar[[0, *timesteps]]))
    x = normal(0)
    ours, _ = sample(
        normal_data_denoiser(schedule),
        DDIM(schedule.parameterization),
        x,
        ddim_coefficients(Grid.at(schedule, timesteps), 0.0),
        lambda i: jnp.zeros_like(x),
    )
    assert relative_error(ours, np.prod(np.cos(np.diff(angles))) * np.asarray(x)) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["256", "512"])
def test_many_steps_on_normal_data_keep_its_variance(schedule_of, name, eta):
    schedule = schedule_of(name, use_dynamic_rescale=False)
    rows = ddim_coefficients(make_grid(schedule, "uniform_trailing", 1000), eta)
    x = normal(0, 2, 4, 8, 8, 16)
    ours, _ = sample(
        normal_data_denoiser(schedule),
        DDIM(schedule.parameterization),
        x,
        rows,
        lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x.shape),
    )
    # The variance of 8192 draws has a standard error of 0.016.
    assert np.asarray(ours).var() == pytest.approx(1, abs=0.06)


def test_the_state_the_carry_and_the_index_pass_from_step_to_step(schedule_of):
    class Rows(NamedTuple):
        timestep: np.ndarray

    class Summing:
        def coefficients(self, grid, eta):
            raise AssertionError("the tables are given")

        def init(self, x):
            return jnp.zeros(())

        def step(self, state, x, prediction, coefficients, noise):
            state = state + coefficients.timestep
            return x + noise * state, state

    def counting(x, timestep, index, carry):
        return x, {"calls": carry["calls"] + 1, "last": timestep, "index": index}

    end, carry = sample(
        counting,
        Summing(),
        jnp.zeros((2, 3)),
        Rows(np.array([30, 20, 10], np.float32)),
        lambda i: jnp.full((2, 3), 10.0) ** i.astype(jnp.float32),
        carry={
            "calls": jnp.zeros((), jnp.int32),
            "last": jnp.zeros((2,)),
            "index": jnp.zeros((), jnp.int32),
        },
    )
    assert np.all(end == 30 * 1 + 50 * 10 + 60 * 100)
    assert carry["calls"] == 3
    assert np.array_equal(carry["last"], [10, 10])
    assert carry["index"] == 2


def test_x_stays_float32_when_the_denoiser_answers_in_bfloat16(schedule_of, relative_error):
    rows = ddim_coefficients(make_grid(schedule_of("512"), "uniform_trailing", 10), 0.0)
    seen = []

    def answer_in(dtype):
        def denoise(x, timestep, index, carry):
            seen.append(x.dtype)
            return (0 * x).astype(dtype), carry

        return denoise

    x = normal(0).astype(jnp.bfloat16)
    rough, exact = (
        sample(answer_in(dtype), DDIM("v"), x, rows, lambda i: jnp.zeros_like(x))[0]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert rough.dtype == jnp.float32 and set(seen) == {jnp.dtype(jnp.float32)}
    assert np.array_equal(rough, exact)


def test_another_eta_or_condition_does_not_recompile_and_the_denoiser_is_traced_once(schedule_of):
    schedule, timesteps = schedule_of("512"), spaced_timesteps("uniform_trailing", 10)
    traces = []

    @jax.jit
    def run(x, rows, noise, fs):
        def denoise(x, timestep, index, carry):
            traces.append(())
            return jnp.tanh(x + 0.1 * fs), carry

        return sample(denoise, DDIM("v"), x, rows, lambda i: noise[i])[0]

    x, noise = normal(0), normal(1, 10, *SHAPE)
    ends = [
        run(x, ddim_coefficients(Grid.at(schedule, timesteps), eta), noise, jnp.float32(fs))
        for eta, fs in ((0.0, 3), (0.5, 3), (1.0, 3), (1.0, 24))
    ]
    assert len(traces) == 1
    assert all(not np.allclose(a, b) for a, b in pairwise(ends))


def test_steps_in_pieces_on_any_number_of_devices_are_one_program(schedule_of, relative_error):
    devices = len(jax.devices())
    assert devices > 1
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    rows = ddim_coefficients(make_grid(schedule_of("512"), "uniform_trailing", 7), 1.0)
    x = normal(0, devices, 4, 3, 2, 4)
    noise = normal(1, 7, *x.shape)
    traces = []

    @jax.jit
    def run(state, noise, start, stop):
        traces.append(())
        return run_steps(toy_denoiser, DDIM("v"), state, rows, lambda i: noise[i], start, stop)

    start = initial_state(DDIM("v"), x)
    at_once = run(start, noise, 0, 7)
    in_pieces = start
    for first, last in ((0, 3), (3, 4), (4, 7)):
        in_pieces = run(in_pieces, noise, first, last)
    assert len(traces) == 1
    assert np.array_equal(in_pieces.x, at_once.x)
    split = run(
        jax.device_put(start, NamedSharding(mesh, PartitionSpec("batch"))),
        jax.device_put(noise, NamedSharding(mesh, PartitionSpec(None, "batch"))),
        0,
        7,
    )
    assert relative_error(split.x, at_once.x) < 1e-5


def test_a_clip_does_not_depend_on_its_batch(schedule_of, relative_error):
    rows = ddim_coefficients(make_grid(schedule_of("512"), "uniform_trailing", 8), 1.0)
    x, noise = normal(0, 3, 4, 3, 2, 4), normal(1, 8, 3, 4, 3, 2, 4)
    batch, _ = sample(toy_denoiser, DDIM("v"), x, rows, lambda i: noise[i])
    for clip in range(3):
        one = slice(clip, clip + 1)
        alone, _ = sample(toy_denoiser, DDIM("v"), x[one], rows, lambda i, s=one: noise[i, s])
        assert relative_error(alone, batch[one]) < 1e-6


@dataclass(frozen=True)
class Extrapolating:
    """A solver of two steps: DDIM on the noise predicted halfway, from this and the last one."""

    ddim: DDIM

    def coefficients(self, grid, eta):
        return self.ddim.coefficients(grid, eta)

    def init(self, x):
        return {"eps": jnp.zeros_like(x), "steps": jnp.zeros((), jnp.int32)}

    def step(self, state, x, prediction, coefficients, noise):
        halfway = 1.5 * prediction - 0.5 * state["eps"]
        eps = jnp.where(state["steps"] == 0, prediction, halfway)
        x, _ = self.ddim.step((), x, eps, coefficients, noise)
        return x, {"eps": prediction, "steps": state["steps"] + 1}


def test_a_solver_of_two_steps_keeps_its_state(schedule_of):
    """It comes nearer to many small steps than DDIM does, so its memory is that of the last one."""
    schedule, x = schedule_of("256"), normal(3)

    def run(solver, steps):
        timesteps = spaced_timesteps("uniform_trailing", steps)
        rows = solver.coefficients(Grid.at(schedule, timesteps), 0.0)
        return np.asarray(sample(toy_denoiser, solver, x, rows, lambda i: 0 * x)[0])

    exact = run(DDIM("eps"), 1000)
    ours, theirs = (
        np.abs(run(s, 50) - exact).mean() for s in (Extrapolating(DDIM("eps")), DDIM("eps"))
    )
    assert ours < 0.5 * theirs
