r"""Measures the solvers on the released models' own schedules, where the ideal denoiser is known.

    python benchmarks/solver_errors.py --write_docs

Data are a mixture of three Gaussians, whose ideal prediction is known in closed form, so that all
error is the solver's. Each run's end is held against the end of the same solver's run of 1000 steps
from the same noise, over numbers of steps that divide 1000. Stochastic solvers are left out: their
runs have no one end.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from jaxtyping import Array, Float

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.diffusion.loop import initial_state, run_steps
from dynamicrafter_jax.diffusion.schedule import Schedule, make_grid, make_schedule
from dynamicrafter_jax.diffusion.solvers import named_solver

DOCUMENT = Path(__file__).parent.parent / "docs" / "sampling.md"
IMAGE = Path(__file__).parent.parent / "docs" / "images" / "solver_errors.svg"
SOLVERS = ("ddim", "euler", "dpmpp_2m", "unipc")
SPACINGS = ("uniform_trailing", "karras")
STEPS = (5, 8, 10, 20, 25, 50, 100)
LONGEST = 1000
TABLED = 10

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.2, 0.4, 1.5])
DEVIATIONS = np.array([0.25, 0.3, 0.2])

Errors = dict[str, dict[str, dict[int, float]]]
"""The error by model, by solver and spacing, and by steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    timing.add_outputs(parser, DOCUMENT)
    arguments = parser.parse_args()
    found = {name: errors(schedule_of(name)) for name in ("i2v_256", "i2v_512", "i2v_1024")}
    text = f"{timing.made_with()}\n\n{table(found)}"
    timing.say(text)
    if arguments.json:
        timing.write_json(arguments.json, found)
    if arguments.write_docs:
        draw(found)
        timing.write_docs("solver errors", text, DOCUMENT)


def schedule_of(name: str) -> Schedule:
    """Returns a released model's noise schedule."""
    return make_schedule(**load_config(name).diffusion.to_dict())


def errors(schedule: Schedule) -> dict[str, dict[int, float]]:
    """Returns the error of every solver and spacing, by steps."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 200)), jnp.float32)
    found = {}
    for name in SOLVERS:
        for spacing in SPACINGS:
            exact = end(schedule, name, spacing, x, LONGEST)
            gaps = {steps: end(schedule, name, spacing, x, steps) - exact for steps in STEPS}
            found[f"{name}, {spacing}"] = {
                steps: float(np.sqrt(np.mean(np.square(gap)))) for steps, gap in gaps.items()
            }
    return found


def end(
    schedule: Schedule, name: str, spacing: str, x: Float[Array, "1 n"], steps: int
) -> Float[Array, "1 n"]:
    """Returns where a solver's run from `x` ends."""
    solver = named_solver(name, schedule.parameterization)
    grid = make_grid(schedule, spacing, steps)
    columns = (grid.alpha, grid.sigma, np.sqrt(grid.alpha_bar), grid.scale)
    levels = tuple(jnp.asarray(column, jnp.float32) for column in columns)

    def denoise(x: Array, _: Array, index: Array, carry: Any) -> tuple[Array, Any]:
        return ideal(schedule, x, *(level[index] for level in levels)), carry

    def no_noise(_: Array) -> Array:
        return jnp.zeros_like(x)

    state, rows = initial_state(solver, x), solver.coefficients(grid, 0.0)
    run = jax.jit(run_steps, static_argnums=(0, 1, 4))
    return run(denoise, solver, state, rows, no_noise, 0, steps).x


def ideal(
    schedule: Schedule,
    x: Float[Array, "1 n"],
    alpha: Array,
    sigma: Array,
    signal: Array,
    scale: Array,
) -> Float[Array, "1 n"]:
    """Returns the ideal prediction of eps or v, from E[x0 | x] of the mixture.

    Args:
        schedule: Says which of them.
        x: Noisy samples, alpha x0 + sigma noise.
        alpha: Their signal level with the dynamic rescale.
        sigma: Their noise level.
        signal: Their signal level without it.
        scale: The rescale, by which models multiply x0.
    """
    weights, means, deviations = (part[None, None] for part in (WEIGHTS, MEANS, DEVIATIONS))
    variance = jnp.square(alpha * deviations) + jnp.square(sigma)
    gap = x[..., None] - alpha * means
    share = jax.nn.softmax(
        jnp.log(weights) - jnp.log(variance) / 2 - jnp.square(gap) / (2 * variance)
    )
    x0 = scale * (share * (means + alpha * jnp.square(deviations) / variance * gap)).sum(-1)
    eps = (x - signal * x0) / sigma
    return eps if schedule.parameterization == "eps" else signal * eps - sigma * x0


def table(found: Errors) -> str:
    """Returns the errors of `TABLED` steps in Markdown."""
    rows = [
        [f"`{way.replace(', ', '`, `')}`", *(f"{found[name][way][TABLED]:.3f}" for name in found)]
        for way in found["i2v_256"]
    ]
    return timing.markdown([f"{TABLED} steps", *(f"`{name}`" for name in found)], rows)


def draw(found: Errors) -> None:
    """Draws the errors against the steps, a panel for each model."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "solver_errors"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found), figsize=(10, 3.8), sharey=True, layout="constrained"
    )
    for axes, (model, ways) in zip(panels, found.items(), strict=True):
        for way, by_steps in ways.items():
            solver, _, spacing = way.partition(", ")
            axes.loglog(
                *zip(*by_steps.items(), strict=True),
                color=f"C{SOLVERS.index(solver)}",
                linestyle="--" if spacing == "karras" else "-",
                marker="o",
                markersize=3,
                label=way,
            )
        axes.set(title=model, xlabel="steps")
        axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("root mean square error")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(IMAGE, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
