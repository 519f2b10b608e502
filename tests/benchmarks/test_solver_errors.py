"""The mixture whose ideal prediction is known, and what solvers make of it."""

import benchmark_modules
import jax.numpy as jnp
import numpy as np
import pytest

(solver_errors,) = benchmark_modules.load("solver_errors")


@pytest.mark.parametrize("model", ["i2v_256", "i2v_512"])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_the_ideal_prediction_is_that_of_the_posterior(model, row):
    """E[x0 | x], integrated over all x0."""
    schedule = solver_errors.schedule_of(model)
    grid = solver_errors.make_grid(schedule, "uniform_trailing", 10)
    alpha, sigma, scale = grid.alpha[row], grid.sigma[row], grid.scale[row]
    signal = np.sqrt(grid.alpha_bar[row])
    x = np.linspace(-2, 2, 9)

    x0 = np.linspace(-4, 4, 20001)
    parts = np.exp(-0.5 * ((x0[:, None] - solver_errors.MEANS) / solver_errors.DEVIATIONS) ** 2)
    density = parts @ (solver_errors.WEIGHTS / solver_errors.DEVIATIONS)
    weights = density * np.exp(-0.5 * ((x[:, None] - alpha * x0) / sigma) ** 2)
    mean = scale * (weights @ x0) / weights.sum(1)

    arguments = (jnp.float32(value) for value in (alpha, sigma, signal, scale))
    found = np.asarray(solver_errors.ideal(schedule, jnp.asarray(x, jnp.float32)[None], *arguments))
    eps = (x - signal * mean) / sigma
    wanted = eps if model == "i2v_256" else signal * eps - sigma * mean
    np.testing.assert_allclose(found[0], wanted, atol=2e-4)


def test_more_steps_and_higher_orders_end_nearer():
    schedule = solver_errors.schedule_of("i2v_512")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 50)), jnp.float32)

    def error(name, steps):
        ends = [solver_errors.end(schedule, name, "karras", x, n) for n in (steps, 1000)]
        return float(jnp.abs(ends[0] - ends[1]).mean())

    assert error("unipc", 20) < error("unipc", 10) < error("euler", 10)


def test_the_table_has_a_row_for_every_way():
    ways = [f"{name}, {spacing}" for name in solver_errors.SOLVERS for spacing in ("a", "b")]
    found = {model: {way: {10: 0.25} for way in ways} for model in ("i2v_256", "i2v_512")}
    lines = solver_errors.table(found).splitlines()
    assert len(lines) == 2 + len(ways)
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["`ddim`, `a`", "0.250", "0.250"]
