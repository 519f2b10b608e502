"""Distances between two sets of clips by their features: Fréchet and kernel distance (FVD, KVD).

Everything is computed on the host in float64, which covariances need and TPUs lack.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from dynamicrafter_jax.errors import UserError

OfResamples = Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " m"]], float]
"""A distance, given how often each clip of the two sets counts."""

# Rows of a kernel matrix that are computed at a time.
_BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """The moments of a set of clips, from which the Fréchet distance is computed.

    Attributes:
        count: Number of clips.
        mean: Mean of their features.
        scatter: Sum over the clips of outer products of features minus the mean.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Returns the moments of one or more clips.

        Raises:
            UserError: There are no clips, or a feature is not finite.
        """
        features = _checked(features)
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased estimate of the covariance.

        Raises:
            UserError: There is only one clip.
        """
        if self.count < 2:
            raise UserError("one clip has no covariance: a Fréchet distance needs more of each set")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared Fréchet distance between two Gaussians with these moments: FVD.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (arXiv 1706.08500, Eq. 6, and
    1812.01717). The root's trace is computed from the eigenvalues of the symmetric matrix inside.

    It is biased upwards, the more so the fewer clips there are: compare only numbers from equally
    many clips. With fewer clips than dimensions it is still finite, but says little, and a warning
    is given.

    Raises:
        UserError: A set has only one clip, or the widths of the features differ.
    """
    _check_widths(a.mean, b.mean)
    _warn_of_few(min(a.count, b.count), len(a.mean))
    return _frechet(a, b)


def kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d"]) -> float:
    """Returns the unbiased squared maximum mean discrepancy of all features: KVD.

    The kernel is (x.y / d + 1)^3 (arXiv 1801.01401, section 4.1, and 1812.01717). The distance may
    be negative: it scatters around zero if both sets have the same distribution.

    Raises:
        UserError: A set has only one clip, a feature is not finite, or widths differ.
    """
    x, y = _checked(x), _checked(y)
    _check_widths(x[0], y[0])
    if min(len(x), len(y)) < 2:
        raise UserError("one clip is too few: a kernel distance needs more of each set")
    across = _kernel_sum(x, y) / (len(x) * len(y))
    return _mean_within(x) + _mean_within(y) - 2 * across


def frechet_of_resamples(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d"]) -> OfResamples:
    """Returns `frechet_distance` as a metric for `bootstrap`.

    Raises:
        UserError: A feature is not finite, or widths differ.
    """
    x, y = _checked(x), _checked(y)
    _check_widths(x[0], y[0])
    _warn_of_few(min(len(x), len(y)), x.shape[1])
    origin = x.mean(0)  # close enough to all means to avoid cancellation
    x, y = x - origin, y - origin

    def distance(x_counts: np.ndarray, y_counts: np.ndarray) -> float:
        return _frechet(_counted_moments(x, x_counts), _counted_moments(y, y_counts))

    return distance


def kernel_of_resamples(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d"]) -> OfResamples:
    """Returns `kernel_distance` as a metric for `bootstrap`; it keeps three kernel matrices.

    A clip that is drawn twice is not compared with itself, which would bias the distance.

    Raises:
        UserError: A feature is not finite, or widths differ.
    """
    x, y = _checked(x), _checked(y)
    _check_widths(x[0], y[0])
    within = _kernel(x, x), _kernel(y, y)
    for matrix in within:
        np.fill_diagonal(matrix, 0)
    across = _kernel(x, y)

    def distance(x_counts: np.ndarray, y_counts: np.ndarray) -> float:
        means = [
            counts @ matrix @ counts / (counts.sum() ** 2 - (counts**2).sum())
            for matrix, counts in zip(within, (x_counts, y_counts), strict=True)
        ]
        mean_across = x_counts @ across @ y_counts / (x_counts.sum() * y_counts.sum())
        return float(sum(means) - 2 * mean_across)

    return distance


def _frechet(a: Moments, b: Moments) -> float:
    few, many = sorted((a, b), key=lambda moments: moments.count)
    root = _root(few)
    eigenvalues = np.linalg.eigvalsh(root.T @ many.covariance @ root)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def _root(moments: Moments) -> Float64[np.ndarray, "d r"]:
    """Returns R with R R^T the covariance, without columns that are zero.

    n clips span n - 1 dimensions. In the others, rounding errors would grow to about 1e-8 of the
    largest value by the square root.
    """
    values, vectors = np.linalg.eigh(moments.covariance)
    rank = min(moments.count - 1, len(values))
    return vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))


def _counted_moments(features: np.ndarray, counts: np.ndarray) -> Moments:
    """Returns the moments of centred features, each counted a number of times."""
    count = int(counts.sum())
    mean = counts @ features / count
    scatter = (features * counts[:, None]).T @ features - count * np.outer(mean, mean)
    return Moments(count, mean, scatter)


def _mean_within(x: np.ndarray) -> float:
    """Returns the mean of the kernel over pairs of different clips."""
    with_themselves = float(((np.square(x).mean(1) + 1) ** 3).sum())
    return (_kernel_sum(x, x) - with_themselves) / (len(x) * (len(x) - 1))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    blocks = np.split(x, range(_BLOCK, len(x), _BLOCK))
    return sum(float(_kernel(block, y).sum()) for block in blocks)


def _checked(features: np.ndarray) -> Float64[np.ndarray, "n d"]:
    """Returns features as float64; raises `UserError` if there are none or not all are finite."""
    if not len(features):
        raise UserError("there are no clips to compare")
    if not np.isfinite(features).all():
        raise UserError("features hold NaN or infinite values: check the clips and the weights")
    return features.astype(np.float64)


def _check_widths(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise UserError(
            f"features {len(a)} and {len(b)} wide can't be compared: give features of one network"
        )


def _warn_of_few(count: int, width: int) -> None:
    if count <= width:
        warnings.warn(
            f"{count} clips for features of {width} dimensions: their covariance is singular, and "
            "the Fréchet distance is far too large; use more clips",
            stacklevel=3,
        )
