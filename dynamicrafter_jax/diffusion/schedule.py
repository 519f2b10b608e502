"""Noise schedules and the points of them that a sampler visits: float64 NumPy, on the host.

Everything here is computed once, so float64 costs nothing. Near a zero terminal signal-to-noise
ratio, float32 differences would lose every digit.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from dynamicrafter_jax.diffusion.prediction import Parameterization
from dynamicrafter_jax.errors import UserError

RESCALE_RAMP = 400
"""Timesteps over which the dynamic rescale falls from 1 to its base scale."""

SPACINGS = ("uniform", "uniform_trailing", "karras")
"""Ways to choose the points that a sampler visits; see `make_grid`."""

_KARRAS_RHO = 7


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much signal and noise each timestep has, and what the denoiser predicts.

    Attributes:
        alpha_bar: Cumulative product of 1 - beta: the signal's share of the variance.
        scale: s_t, the factor on x0 at each timestep (dynamic rescale); ones without a rescale.
        parameterization: "eps" or "v".
    """

    alpha_bar: Float64[np.ndarray, "timesteps"]
    scale: Float64[np.ndarray, "timesteps"]
    parameterization: Parameterization

    @property
    def signal_level(self) -> Float64[np.ndarray, "timesteps"]:
        """sqrt(alpha_bar), the factor on x0."""
        return np.sqrt(self.alpha_bar)

    @property
    def noise_level(self) -> Float64[np.ndarray, "timesteps"]:
        """sqrt(1 - alpha_bar), the factor on the noise."""
        return np.sqrt(1 - self.alpha_bar)


def make_schedule(
    *,
    timesteps: int,
    linear_start: float,
    linear_end: float,
    parameterization: str,
    rescale_betas_zero_snr: bool,
    use_dynamic_rescale: bool,
    base_scale: float | None = None,
) -> Schedule:
    """Builds the schedule of a model; the arguments are the config section `diffusion`.

    Args:
        timesteps: Length of the diffusion process, at least 2.
        linear_start: First beta, above 0.
        linear_end: Last beta, below 1 and not below `linear_start`.
        parameterization: "eps" or "v".
        rescale_betas_zero_snr: Whether to make the last timestep pure noise.
        use_dynamic_rescale: Whether to shrink x0 at noisy timesteps.
        base_scale: Where the dynamic rescale ends; needed only with `use_dynamic_rescale`.

    Raises:
        UserError: A value is out of range, or eps is combined with zero terminal SNR.
    """
    if parameterization not in ("eps", "v"):
        raise UserError(
            f"diffusion.parameterization is {parameterization!r}: choose 'eps' (the denoiser "
            "predicts the noise) or 'v' (it predicts the velocity)"
        )
    if parameterization == "eps" and rescale_betas_zero_snr:
        raise UserError(
            "diffusion.parameterization 'eps' does not work with rescale_betas_zero_snr, which "
            "makes the last timestep pure noise (alpha_bar = 0), where the noise says nothing "
            "about x0: use parameterization 'v', or set rescale_betas_zero_snr to False"
        )
    if timesteps < 2:
        raise UserError(f"diffusion.timesteps is {timesteps}: it must be at least 2")
    if not 0 < linear_start <= linear_end < 1:
        raise UserError(
            f"diffusion.linear_start and linear_end are {linear_start} and {linear_end}: "
            "betas must satisfy 0 < linear_start <= linear_end < 1"
        )
    betas = linear_betas(timesteps, linear_start, linear_end)
    if rescale_betas_zero_snr:
        betas = zero_terminal_snr(betas)
    scale = np.ones(timesteps)
    if use_dynamic_rescale:
        if base_scale is None or not base_scale > 0:
            raise UserError(
                f"diffusion.base_scale is {base_scale}: use_dynamic_rescale needs one above 0"
            )
        scale = rescale_schedule(timesteps, base_scale)
    return Schedule(np.cumprod(1 - betas), scale, parameterization)


def linear_betas(
    timesteps: int, linear_start: float, linear_end: float
) -> Float64[np.ndarray, "timesteps"]:
    """Returns betas with evenly spaced square roots, as in latent diffusion (arXiv 2112.10752)."""
    return np.linspace(np.sqrt(linear_start), np.sqrt(linear_end), timesteps) ** 2


def zero_terminal_snr(
    betas: Float64[np.ndarray, "timesteps"],
) -> Float64[np.ndarray, "timesteps"]:
    """Shifts and stretches sqrt(alpha_bar) to end at exactly 0 and keep its first value.

    Algorithm 1 of arXiv 2305.08891.
    """
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def rescale_schedule(timesteps: int, base_scale: float) -> Float64[np.ndarray, "timesteps"]:
    """Returns s_t of the dynamic rescale: linear from 1 down to `base_scale`, then constant.

    A smaller x0 under the same noise makes noisy timesteps even noisier, as high resolutions need
    (Section 2.2 of arXiv 2301.10972 uses a constant; this shape is the release's).
    """
    ramp = np.linspace(1, base_scale, RESCALE_RAMP)
    return np.concatenate([ramp, np.full(timesteps, ramp[-1])])[:timesteps]


@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a schedule that a sampler visits, in its order, and the one where it ends.

    With the dynamic rescale, a noisy sample is x_t = alpha_t x0 + sigma_t eps with the signal level
    alpha_t = s_t sqrt(alpha_bar_t) and the noise level sigma_t = sqrt(1 - alpha_bar_t), whose
    squares do not add up to 1. Methods for a general alpha_t and sigma_t need nothing else to be
    right with a rescale, as long as they keep x0 itself from step to step: a denoiser predicts the
    rescaled s_t x0.

    Attributes:
        timestep: Where the denoiser is evaluated, descending and possibly fractional.
        alpha_bar: alpha_bar at these timesteps, then where the last step ends.
        scale: s_t, likewise.
    """

    timestep: Float64[np.ndarray, "steps"]
    alpha_bar: Float64[np.ndarray, "points"]
    scale: Float64[np.ndarray, "points"]

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Int64[np.ndarray, "steps"]) -> "Grid":
        """Returns the grid of ascending timesteps to visit; it ends at timestep 0.

        Raises:
            ValueError: `timesteps` are not strictly ascending or not in the schedule.
        """
        bounded = np.concatenate([[-1], timesteps, [len(schedule.alpha_bar)]])
        if np.any(np.diff(bounded) <= 0):
            last = len(schedule.alpha_bar) - 1
            raise ValueError(f"timesteps {timesteps} must ascend strictly within 0 .. {last}")
        points = np.append(timesteps[::-1], 0)
        return cls(
            timesteps[::-1].astype(np.float64), schedule.alpha_bar[points], schedule.scale[points]
        )

    @property
    def alpha(self) -> Float64[np.ndarray, "points"]:
        """alpha_t, the factor on x0."""
        return self.scale * np.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> Float64[np.ndarray, "points"]:
        """sigma_t, the factor on the noise."""
        return np.sqrt(1 - self.alpha_bar)

    @property
    def half_log_snr(self) -> Float64[np.ndarray, "points"]:
        """lambda_t = log(alpha_t / sigma_t); minus infinity at pure noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha / self.sigma)


def make_grid(schedule: Schedule, spacing: str, steps: int) -> Grid:
    """Returns the points that a sampler visits.

    - `uniform` and `uniform_trailing` visit the timesteps of `spaced_timesteps`.
    - `karras` spaces sigma_t / alpha_t evenly in its seventh root, from the highest timestep down
      to timestep 0 (Eq. 5, arXiv 2206.00364), and interpolates its logarithm between timesteps, so
      these become fractions. If the highest timestep is pure noise, where the ratio is infinite, it
      is visited first, and the rest is spaced from where `uniform_trailing` goes next.

    Args:
        schedule: The model's schedule.
        spacing: One of `SPACINGS`.
        steps: Number of steps, from 1 to the schedule's length.

    Raises:
        UserError: The spacing is unknown, or `steps` is out of range.
    """
    timesteps = len(schedule.alpha_bar)
    if spacing != "karras":
        return Grid.at(schedule, spaced_timesteps(spacing, steps, timesteps))
    trailing = spaced_timesteps("uniform_trailing", steps, timesteps)[::-1]
    infinite = int(schedule.alpha_bar[-1] == 0)
    finite = np.arange(timesteps - infinite)
    ratio = schedule.noise_level[finite] / (schedule.scale * schedule.signal_level)[finite]
    log_ratio = np.log(ratio)
    if steps == infinite:
        return Grid.at(schedule, trailing)
    highest = np.interp(trailing[infinite], finite, ratio)
    ramp = np.linspace(
        highest ** (1 / _KARRAS_RHO), ratio[0] ** (1 / _KARRAS_RHO), steps - infinite + 1
    )
    wanted = ramp**_KARRAS_RHO
    timestep = np.interp(np.log(wanted), log_ratio, finite)
    scale = np.interp(timestep, np.arange(timesteps), schedule.scale)
    alpha_bar = 1 / (1 + (scale * wanted) ** 2)
    first = Grid.at(schedule, trailing[:infinite])
    return Grid(
        np.append(first.timestep, timestep[:-1]),
        np.append(first.alpha_bar[:infinite], alpha_bar),
        np.append(first.scale[:infinite], scale),
    )


def spaced_timesteps(
    spacing: str, steps: int, timesteps: int = 1000
) -> Int64[np.ndarray, "chosen"]:
    """Chooses the timesteps that a sampler visits: ascending, distinct, in 0 .. timesteps - 1.

    - `uniform` starts at timestep 1 and goes up in strides of timesteps // steps ("leading" in
      Section 3.3 of arXiv 2305.08891, plus 1). This gives ceil(timesteps / stride) entries, which
      is more than `steps` if the stride is rounded down: 31 for 30 of 1000. If the last entry would
      be `timesteps` itself, which does not exist, entries are lowered just enough to stay in range
      and distinct: the last alone, or all by one if the stride is 1.
    - `uniform_trailing` is exactly `steps` entries down from timesteps - 1 in fractional strides
      ("trailing", same section), rounded half to even. It always visits the last timestep, as a
      zero terminal SNR requires.

    Args:
        spacing: "uniform" or "uniform_trailing".
        steps: Number of steps, 1 .. timesteps.
        timesteps: Length of the diffusion process.

    Raises:
        UserError: The spacing is unknown, or `steps` is out of range.
    """
    if not 1 <= steps <= timesteps:
        raise UserError(f"sampling.steps is {steps}: choose from 1 to {timesteps}")
    match spacing:
        case "uniform":
            chosen = np.arange(0, timesteps, timesteps // steps) + 1
            # Each entry must leave room for those above it.
            return np.minimum(chosen, timesteps - len(chosen) + np.arange(len(chosen)))
        case "uniform_trailing":
            # np.arange's own rounding breaks ties as in published videos. For some numbers of
            # steps, the same rounding makes it run one entry too far, below 0.
            descending = np.arange(timesteps, 0, -timesteps / steps)[:steps]
            return np.round(descending).astype(np.int64)[::-1] - 1
        case _:
            raise UserError(f"sampling.spacing is {spacing!r}: choose from {', '.join(SPACINGS)}")
