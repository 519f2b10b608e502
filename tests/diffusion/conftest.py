from collections.abc import Callable

import pytest

from dynamicrafter_jax.diffusion.schedule import Schedule, make_schedule

BETAS = {"timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012}
RELEASES = {
    "256": {
        "parameterization": "eps",
        "rescale_betas_zero_snr": False,
        "use_dynamic_rescale": False,
    },
    "512": {
        "parameterization": "v",
        "rescale_betas_zero_snr": True,
        "use_dynamic_rescale": True,
        "base_scale": 0.7,
    },
    "1024": {
        "parameterization": "v",
        "rescale_betas_zero_snr": True,
        "use_dynamic_rescale": True,
        "base_scale": 0.3,
    },
}


@pytest.fixture(scope="session")
def schedule_of() -> Callable[..., Schedule]:
    """The schedule of a released model by name, with any setting replaced."""

    def make(name: str, **replaced) -> Schedule:
        return make_schedule(**(BETAS | RELEASES[name] | replaced))

    return make
