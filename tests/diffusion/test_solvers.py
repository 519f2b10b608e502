"""The solvers beside DDIM, against closed forms, a mixture of Gaussians, and diffusers.

For Gaussian data, and mixtures of Gaussians, the ideal denoiser is known, so a solver's only error
is its own.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import Grid, make_grid
from dynamicrafter_jax.diffusion.solvers import (
    SOLVERS,
    base,
    dpm_solver,
    euler,
    named_solver,
    unipc,
)
from dynamicrafter_jax.errors import UserError

DETERMINISTIC = ("dpmpp_2m", "unipc", "euler")
STOCHASTIC = ("dpmpp_2m_sde", "euler_ancestral")
RELEASES = ("256", "512", "1024")

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.2, 0.4, 1.5])
DEVIATIONS = np.array([0.25, 0.3, 0.2])


@pytest.fixture
def in_float64(monkeypatch):
    """Lets the solvers compute with NumPy's float64, which their types do not allow."""
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    for module in (base, dpm_solver, euler, unipc):
        monkeypatch.setattr(module, "float32_table", lambda table: table)
        monkeypatch.setattr(module, "float32", lambda x: x, raising=False)
        monkeypatch.setattr(module, "jnp", np, raising=False)


def mixture_x0(x, alpha, sigma):
    """E[x0 | x] of the mixture, by the posterior of its parts."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    gap = x[..., None] - alpha * MEANS
    log_share = np.log(WEIGHTS) - np.log(variance) / 2 - gap**2 / (2 * variance)
    share = np.exp(log_share - log_share.max(-1, keepdims=True))
    mean = MEANS + alpha * DEVIATIONS**2 / variance * gap
    return (share * mean).sum(-1) / share.sum(-1)


def run(name, parameterization, grid, x, x0_of=mixture_x0):
    """A run with an ideal denoiser, in NumPy."""
    solver: Any = named_solver(name, parameterization)
    tables, structure = jax.tree.flatten(solver.coefficients(grid, 0.0))
    state = solver.init(x)
    points = zip(grid.alpha, grid.sigma, np.sqrt(grid.alpha_bar), grid.scale, strict=True)
    for i, (alpha, sigma, signal, scale) in enumerate(list(points)[:-1]):
        x0 = scale * x0_of(x, alpha, sigma)  # a model predicts the rescaled x0
        eps = (x - signal * x0) / sigma
        prediction = eps if parameterization == "eps" else signal * eps - sigma * x0
        row = jax.tree.unflatten(structure, [table[i] for table in tables])
        x, state = solver.step(state, x, prediction, row, np.zeros_like(x))
    return x


def distance(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


def starts():
    """Standard normal noise to start from."""
    return np.random.default_rng(0).standard_normal(200)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2), ("unipc", 3)])
def test_orders_of_accuracy(in_float64, name, order):
    """On log-SNR from -4 to 4 in even steps, halving them divides the error by 2^order."""

    def grid(steps):
        alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(-4, 4, steps + 1)))
        return Grid(np.arange(steps, 0, -1) - 1.0, alpha_bar, np.ones(steps + 1))

    x = starts()
    exact = run("unipc", "v", grid(1280), x)
    errors = [distance(run(name, "v", grid(steps), x), exact) for steps in (40, 80, 160)]
    slopes = [np.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.2)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("spacing", ["uniform_trailing", "karras"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_errors_fall_with_the_steps_on_the_models_own_schedules(
    in_float64, schedule_of, name, spacing, release
):
    """Towards the solver's own 1000 steps, over numbers that divide 1000; no rescale stands in
    the way of the same end for all."""
    schedule, x = schedule_of(release), starts()

    def end(solver, steps):
        grid = make_grid(schedule, spacing, steps)
        return run(solver, schedule.parameterization, grid, x)

    exact = end(name, 1000)
    errors = [distance(end(name, steps), exact) for steps in (5, 10, 20, 50, 100, 200, 500)]
    assert all(fine < coarse for coarse, fine in pairwise(errors)), errors
    assert distance(exact, end("unipc", 1000)) < (0.006 if name == "euler" else 0.0005)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("release", ["512", "1024"])
def test_the_first_step_from_pure_noise_is_the_closed_form(in_float64, schedule_of, name, release):
    """From sigma = 1 and alpha = 0, the straight line to the next point: sigma x + alpha x0."""
    schedule = schedule_of(release)
    grid = make_grid(schedule, "uniform_trailing", 25)
    x = starts()
    solver: Any = named_solver(name, "v")
    row = jax.tree.map(lambda table: table[0], solver.coefficients(grid, 0.0))
    rescaled = schedule.scale[999] * 0.3
    after, _ = solver.step(solver.init(x), x, np.full_like(x, -rescaled), row, 0 * x)
    assert grid.alpha_bar[0] == 0
    assert after == pytest.approx(grid.sigma[1] * x + grid.alpha[1] * 0.3, abs=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_steps_from_pure_noise_keep_none_of_it(schedule_of, name):
    grid = make_grid(schedule_of("512"), "uniform_trailing", 25)
    first = jax.tree.map(lambda table: table[0], named_solver(name, "v").coefficients(grid, 1.0))
    assert first.of_x == 0
    assert first.noise == pytest.approx(grid.sigma[1])
    assert first.of_x0 == pytest.approx(grid.alpha[1])


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_runs_give_gaussian_data_its_mean_and_variance(schedule_of, name, eta, release):
    """x is affine in the noise, so its mean and variance follow from the tables alone.

    With the ideal denoiser of N(m, d^2) they must come to those of the noisy data where the run
    ends, up to the error of 1000 steps.
    """
    mean, variance = 0.7, 0.3**2
    schedule = schedule_of(release)
    grid = make_grid(schedule, "uniform_trailing", 1000)
    rows = named_solver(name, schedule.parameterization).coefficients(grid, eta)
    of_x, of_x0, noise = (np.asarray(table, np.float64) for table in rows[2:4] + rows[-1:])
    extrapolation = rows.extrapolation if name == "dpmpp_2m_sde" else np.zeros_like(of_x)
    # E[x0 | x] = offset + slope x at each point.
    alpha, sigma = grid.alpha[:-1], grid.sigma[:-1]
    slope = alpha * variance / (alpha**2 * variance + sigma**2)
    offset = mean - slope * alpha * mean
    # The state is x and the x0 before: follow their means and covariance.
    now, covariance = np.zeros(2), np.diag([1.0, 0.0])
    now[0] = grid.alpha[0] * mean
    covariance[0, 0] = grid.alpha[0] ** 2 * variance + grid.sigma[0] ** 2
    for i in range(1000):
        forward = of_x0[i] * (1 + extrapolation[i])
        step = np.array([
            [of_x[i] + forward * slope[i], -of_x0[i] * extrapolation[i]],
            [slope[i], 0],
        ])  # fmt: skip
        now = step @ now + [forward * offset[i], offset[i]]
        covariance = step @ covariance @ step.T + np.diag([noise[i] ** 2, 0])
    wanted = grid.alpha[-1] ** 2 * variance + grid.sigma[-1] ** 2
    assert now[0] == pytest.approx(grid.alpha[-1] * mean, rel=5e-3)
    bound = 4e-2 if name == "euler_ancestral" else 1e-2  # orders 1 and 2
    assert covariance[0, 0] == pytest.approx(wanted, rel=bound)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_euler_is_ddim_without_a_rescale(schedule_of, relative_error, eta):
    schedule = schedule_of("512", use_dynamic_rescale=False)
    grid = make_grid(schedule, "uniform_trailing", 20)
    draw = np.random.default_rng(0).standard_normal
    x, noise = (jnp.asarray(draw(shape), jnp.float32) for shape in ((2, 3, 4), (20, 2, 3, 4)))

    def end(name):
        return whole_run(named_solver(name, "v"), grid, eta, x, lambda i: noise[i])

    ancestral = end("euler_ancestral")
    assert relative_error(ancestral, end("ddim")) < 1e-5
    assert (relative_error(end("euler"), ancestral) < 1e-6) == (eta == 0)


def whole_run(solver, grid, eta, x, noise):
    """A run of the loop with the small network of the golden runs."""

    def denoise(x, timestep, index, carry):
        t = timestep.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.tanh(1.3 * x + t / 700) - 0.2 * x, carry

    rows = solver.coefficients(grid, eta)
    steps = len(grid.timestep)
    return run_steps(denoise, solver, initial_state(solver, x), rows, noise, 0, steps).x


def golden_runs():
    """The names of the recorded runs, as in `benchmarks/make_solver_golden.py`."""
    solvers = {
        "dpmpp_2m": ("trailing.10", "trailing.20", "quadratic.20"),
        "dpmpp_2m_sde": ("trailing.10", "quadratic.20"),
        "unipc": ("trailing.10", "trailing.20", "quadratic.20"),
        "euler": ("trailing.10",),
    }
    return [(name, which) for name, spacings in solvers.items() for which in spacings]


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize(("name", "which"), golden_runs())
def test_runs_are_those_of_diffusers(
    golden, schedule_of, relative_error, name, which, parameterization
):
    with np.load(golden / "solvers.npz") as file:
        recorded = {key: file[key] for key in file.files}
    grid = Grid.at(schedule_of("256"), recorded[f"timesteps.{which}"][::-1])
    x, noise = (jnp.asarray(recorded[key], jnp.float32) for key in ("x", "noise"))
    solver = named_solver(name, parameterization)
    ours = whole_run(solver, grid, 1.0, x, lambda i: noise[i])
    assert relative_error(ours, recorded[f"end.{name}.{which}.{parameterization}"]) < 1e-5


@pytest.mark.parametrize("name", SOLVERS)
def test_runs_follow_every_spacing_and_rescale(schedule_of, name):
    """An oracle of x0 is followed to it, but for the noise at timestep 0 and what DDIM keeps of
    the rescale."""
    schedule = schedule_of("512")
    x0 = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    for spacing in ("uniform_trailing", "karras"):
        grid = make_grid(schedule, spacing, 12)
        signal, sigma, scale = (
            jnp.asarray(v[:-1], jnp.float32)
            for v in (np.sqrt(grid.alpha_bar), grid.sigma, grid.scale)
        )

        def denoise(x, timestep, index, carry, rows=(signal, sigma, scale)):
            signal, sigma, scale = (row[index] for row in rows)
            rescaled = scale * x0
            eps = (x - signal * rescaled) / sigma
            return signal * eps - sigma * rescaled, carry

        solver = named_solver(name, "v")
        rows = solver.coefficients(grid, 0.0)
        state = initial_state(solver, x)
        end = run_steps(denoise, solver, state, rows, lambda i: jnp.zeros_like(x), 0, 12).x
        kept = grid.scale[-2] if name == "ddim" else 1
        assert np.abs(np.asarray(end) - kept * np.asarray(x0)).max() < 0.1, spacing


def test_a_program_serves_every_eta_and_spacing(schedule_of):
    traced = []
    solver, x = named_solver("dpmpp_2m_sde", "v"), jnp.ones((2, 3))

    @jax.jit
    def sample(rows):
        traced.append(1)

        def denoise(x, timestep, index, carry):
            return x * timestep[:, None] / 1000, carry

        return run_steps(denoise, solver, initial_state(solver, x), rows, lambda i: x, 0, 8).x

    ends = [
        np.asarray(sample(solver.coefficients(make_grid(schedule_of("512"), spacing, 8), eta)))
        for spacing in ("uniform_trailing", "karras")
        for eta in (0.0, 1.0)
    ]
    assert len(traced) == 1 and len({end.tobytes() for end in ends}) == 4


@pytest.mark.parametrize("name", ["ddim", *STOCHASTIC])
@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(schedule_of, name, eta):
    with pytest.raises(UserError, match=f"eta is {eta}"):
        named_solver(name, "v").coefficients(make_grid(schedule_of("512"), "uniform", 5), eta)


def test_unknown_solvers_are_refused():
    with pytest.raises(UserError, match="solver is 'heun': choose from ddim, dpmpp_2m"):
        named_solver("heun", "v")
