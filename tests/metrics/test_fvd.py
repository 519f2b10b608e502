"""Distances against closed forms, other implementations, and the golden numbers."""

import itertools
import warnings

import i3d_files
import numpy as np
import pytest
import scipy.linalg

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.fvd import (
    Moments,
    frechet_distance,
    kernel_distance,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def moments(mean, covariance, count=1000):
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float) * (count - 1))


def covariance(seed, width, decay):
    """A covariance of random directions, with eigenvalues from 1 down to exp(-decay)."""
    directions = np.linalg.qr(normal(seed, width, width))[0]
    return directions * np.exp(-decay * np.linspace(0, 1, width)) @ directions.T


def test_golden_numbers():
    golden = i3d_files.golden()
    a, b = golden["features_a"], golden["features_b"]
    fvd = frechet_distance(Moments.of(a), Moments.of(b))
    assert abs(fvd / golden["fvd"] - 1) < 1e-10
    assert abs(kernel_distance(a, b) / golden["kvd"] - 1) < 1e-10


def test_gaussians_that_commute():
    """|m_a - m_b|^2 and the squared differences of standard deviations."""
    a = moments([1, 2, 3], np.diag([1, 4, 9]))
    b = moments([1, 0, 6], np.diag([16, 4, 0.25]))
    expected = (0 + 4 + 9) + (3**2 + 0**2 + 2.5**2)
    assert abs(frechet_distance(a, b) - expected) < 1e-10


@pytest.mark.parametrize("decay", [0, 3, 10])
def test_gaussians_that_do_not_commute(decay):
    a, b = (covariance(seed, 30, decay) for seed in range(2))
    root = scipy.linalg.sqrtm(a)
    overlap = np.trace(scipy.linalg.sqrtm(root @ b @ root)).real
    shift = normal(2, 30)
    expected = shift @ shift + np.trace(a) + np.trace(b) - 2 * overlap
    ours = frechet_distance(moments(np.zeros(30), a), moments(shift, b))
    assert abs(ours / expected - 1) < 1e-6


@pytest.mark.parametrize("decay", [0, 10, 25])
@pytest.mark.parametrize("clips", [30, 2000])
def test_a_set_is_not_away_from_itself(clips, decay):
    features = 5 + normal(0, clips, 200) @ covariance(1, 200, decay)
    features = features.astype(np.float32)
    one = Moments.of(features)
    other = Moments.of(features[::-1])
    scale = np.trace(one.covariance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert abs(frechet_distance(one, one)) < 1e-6 * scale
        assert abs(frechet_distance(one, other)) < 1e-6 * scale
        assert frechet_distance(one, Moments.of(features + 0.01)) > 1e-3 * 200 * 0.01**2


def test_few_clips_give_a_number_and_a_warning():
    a, b = normal(0, 20, 50), 1 + normal(1, 60, 50)
    with pytest.warns(UserWarning, match="20 clips for features of 50 dimensions"):
        ours = frechet_distance(Moments.of(a), Moments.of(b))
    # The nuclear norm of the product of the sets' own deviations is the same overlap.
    deviations = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    overlap = np.linalg.norm(deviations[0] @ deviations[1].T, "nuc")
    spread = sum(np.square(x).sum() for x in deviations)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + spread - 2 * overlap
    assert abs(ours / expected - 1) < 1e-6


def test_enough_clips_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(Moments.of(normal(0, 51, 50)), Moments.of(normal(1, 60, 50)))


def kernel(x, y):
    return (np.dot(x, y) / len(x) + 1) ** 3


def test_kernel_distance_is_a_mean_over_pairs():
    x, y = normal(0, 7, 3), 0.5 + normal(1, 5, 3)
    within = [np.mean([kernel(*pair) for pair in itertools.permutations(z, 2)]) for z in (x, y)]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert abs(kernel_distance(x, y) - (sum(within) - 2 * across)) < 1e-12


def test_blocks_do_not_show(monkeypatch):
    x, y = normal(0, 50, 8), 0.2 + normal(1, 41, 8)
    whole = kernel_distance(x, y)
    monkeypatch.setattr("dynamicrafter_jax.metrics.fvd._BLOCK", 16)
    assert abs(kernel_distance(x, y) / whole - 1) < 1e-12


def test_what_can_not_be_compared_is_refused():
    x = normal(0, 20, 4)
    with pytest.raises(UserError, match="4 and 5 wide"):
        frechet_distance(Moments.of(x), Moments.of(normal(1, 20, 5)))
    with pytest.raises(UserError, match="4 and 5 wide"):
        kernel_distance(x, normal(1, 20, 5))
    with pytest.raises(UserError, match="one clip"), pytest.warns(UserWarning, match="1 clips"):
        frechet_distance(Moments.of(x), Moments.of(x[:1]))
    with pytest.raises(UserError, match="one clip"):
        kernel_distance(x[:1], x)
    with pytest.raises(UserError, match="no clips"):
        Moments.of(x[:0])
    with pytest.raises(UserError, match="NaN"):
        kernel_distance(x, np.where(x > 1, np.nan, x))
