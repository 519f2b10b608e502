"""Solvers, which step from a noisier sample to a cleaner one: a file for each family.

A solver makes coefficients, a pytree of tables computed on the host, and takes steps, each a pure
function of one row of them. The tables are arguments of the compiled loop, so changing eta, or the
points to visit, does not recompile it.
"""

from functools import partial

from dynamicrafter_jax.diffusion.prediction import Parameterization
from dynamicrafter_jax.diffusion.solvers.base import Coefficients, CoefficientsT, Solver, State
from dynamicrafter_jax.diffusion.solvers.ddim import DDIM
from dynamicrafter_jax.diffusion.solvers.dpm_solver import DPMSolver
from dynamicrafter_jax.diffusion.solvers.euler import Euler
from dynamicrafter_jax.diffusion.solvers.unipc import UniPC
from dynamicrafter_jax.errors import UserError

__all__ = [
    "DDIM",
    "SOLVERS",
    "Coefficients",
    "CoefficientsT",
    "DPMSolver",
    "Euler",
    "Solver",
    "State",
    "UniPC",
    "named_solver",
]

_SOLVERS = {
    "ddim": DDIM,
    "dpmpp_2m": partial(DPMSolver, stochastic=False),
    "dpmpp_2m_sde": partial(DPMSolver, stochastic=True),
    "unipc": UniPC,
    "euler": partial(Euler, stochastic=False),
    "euler_ancestral": partial(Euler, stochastic=True),
}

SOLVERS = tuple(_SOLVERS)
"""Names of the solvers. `eta` is for `ddim`, `dpmpp_2m_sde` and `euler_ancestral`."""


def named_solver(name: str, parameterization: Parameterization) -> Solver:
    """Returns a solver by its name.

    Args:
        name: One of `SOLVERS`.
        parameterization: What the denoiser predicts.

    Raises:
        UserError: There is no such solver.
    """
    if name not in _SOLVERS:
        raise UserError(f"sampling.solver is {name!r}: choose from {', '.join(SOLVERS)}")
    return _SOLVERS[name](parameterization)
