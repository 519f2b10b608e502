"""Records runs of the solvers in diffusers, for `tests/diffusion/test_solvers.py`.

    pip install diffusers==0.42.1 torch
    python benchmarks/make_solver_golden.py tests/golden/solvers.npz

The denoiser is a small function of x and the timestep, and the schedule that of the 256 model,
which ends with a finite signal-to-noise ratio. Everything is computed in float64.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

SHAPE = (2, 3, 4, 5)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}

# Solver, spacing, steps, and what makes diffusers take the last step at our order. With quadratic
# timesteps, the last one is no longer than those before, and is taken at second order.
RUNS = (
    ("dpmpp_2m", "trailing", 10, {}),
    ("dpmpp_2m", "trailing", 20, {"euler_at_final": True}),
    ("dpmpp_2m", "quadratic", 20, {}),
    ("dpmpp_2m_sde", "trailing", 10, {"algorithm_type": "sde-dpmsolver++"}),
    ("dpmpp_2m_sde", "quadratic", 20, {"algorithm_type": "sde-dpmsolver++"}),
    ("unipc", "trailing", 10, {"lower_order_final": True}),
    ("unipc", "trailing", 20, {"lower_order_final": True}),
    ("unipc", "quadratic", 20, {"lower_order_final": False}),
    ("euler", "trailing", 10, {}),
)
SCHEDULERS = {
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


def main() -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pin runs of the solvers in diffusers.")
    parser.add_argument("output", type=Path, help="where to")
    arguments = parser.parse_args()
    draw = np.random.default_rng(0).standard_normal
    drawn = {"x": draw(SHAPE), "noise": draw((20, *SHAPE))}
    recorded = dict(drawn)
    for solver, spacing, steps, options in RUNS:
        for parameterization in PREDICTIONS:
            timesteps, end = run(solver, spacing, steps, parameterization, options, **drawn)
            recorded[f"timesteps.{spacing}.{steps}"] = timesteps
            recorded[f"end.{solver}.{spacing}.{steps}.{parameterization}"] = end
    np.savez(arguments.output, **cast(Any, recorded))
    return 0


def run(
    solver: str,
    spacing: str,
    steps: int,
    parameterization: str,
    options: dict[str, Any],
    x: np.ndarray,
    noise: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the timesteps that a run visits, and where it ends if it starts at `x`."""
    scheduler = getattr(cast(Any, importlib.import_module("diffusers")), SCHEDULERS[solver])(
        prediction_type=PREDICTIONS[parameterization],
        final_sigmas_type="sigma_min",
        **BETAS,
        timestep_spacing="trailing",
        **options,
    )
    scheduler.set_timesteps(steps)
    if spacing == "quadratic":
        _visit(scheduler, np.round(999 * (np.arange(steps, 0, -1) / steps) ** 2).astype(np.int64))
    # Some schedulers keep x / sqrt(alpha_bar), and some x itself.
    divided = solver == "euler"
    scale = np.sqrt(1 + float(scheduler.sigmas[0]) ** 2) if divided else 1
    sample = torch.from_numpy(x * scale)
    for i, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(sample, timestep)
        prediction = torch.tanh(1.3 * seen + float(timestep) / 700) - 0.2 * seen
        given = {"variance_noise": torch.from_numpy(noise[i])} if solver == "dpmpp_2m_sde" else {}
        sample = scheduler.step(prediction, timestep, sample, **given).prev_sample
    end = np.sqrt(1 + float(scheduler.sigmas[-1]) ** 2) if divided else 1
    return np.asarray(scheduler.timesteps, np.int64), np.asarray(sample) / end


def _visit(scheduler: Any, timesteps: np.ndarray) -> None:
    """Replaces the timesteps of a scheduler that lets nobody choose them."""
    alpha_bar = np.asarray(scheduler.alphas_cumprod)[np.append(timesteps, 0)]
    scheduler.timesteps = torch.from_numpy(timesteps)
    scheduler.sigmas = torch.from_numpy(np.sqrt((1 - alpha_bar) / alpha_bar))


if __name__ == "__main__":
    raise SystemExit(main())
