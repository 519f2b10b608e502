"""Confidence intervals cover what they are for."""

import numpy as np
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.bootstrap import bootstrap, mean_of_resamples
from dynamicrafter_jax.metrics.fvd import (
    Moments,
    frechet_distance,
    frechet_of_resamples,
    kernel_distance,
    kernel_of_resamples,
)

SHIFT, CLIPS, WIDTH = 0.5, 60, 3


def draw(seed):
    """Two sets of clips whose distances are known from many such draws."""
    normal = np.random.default_rng((7, seed)).standard_normal
    return normal((CLIPS, WIDTH)), SHIFT + normal((CLIPS, WIDTH))


def frechet(x, y):
    return frechet_distance(Moments.of(x), Moments.of(y))


@pytest.mark.parametrize(
    ("measure", "metric"),
    [(frechet, frechet_of_resamples), (kernel_distance, kernel_of_resamples)],
    ids=["frechet", "kernel"],
)
def test_intervals_cover_what_other_clips_would_give(measure, metric):
    typical = np.mean([measure(*draw(seed)) for seed in range(1000, 1400)])
    intervals = [bootstrap(metric, *draw(seed), seed=seed) for seed in range(60)]
    covered = np.mean([i.low <= typical <= i.high for i in intervals])
    # A level of 95 % that is kept falls below that once in some thousand times.
    assert covered >= 0.85
    widths = [i.high - i.low for i in intervals]
    spread = np.std([measure(*draw(seed)) for seed in range(1000, 1400)])
    assert 0.7 < np.mean(widths) / (2 * 1.96 * spread) < 1.4


def test_estimates_are_the_measures_themselves():
    x, y = draw(0)
    assert np.isclose(bootstrap(frechet_of_resamples, x, y).estimate, frechet(x, y), rtol=1e-12)
    found = bootstrap(kernel_of_resamples, x, y)
    assert np.isclose(found.estimate, kernel_distance(x, y), rtol=1e-12)
    assert found.low < found.estimate < found.high


def test_the_bias_of_few_clips_is_found():
    """Of equal Gaussians the Fréchet distance is 0, and all that is measured is bias."""
    normal = np.random.default_rng(0).standard_normal
    x, y = normal((100, 8)), normal((100, 8))
    found = bootstrap(frechet_of_resamples, x, y)
    assert found.estimate > 0.2 and abs(found.estimate - found.bias) < 0.35 * found.estimate
    assert abs(bootstrap(kernel_of_resamples, x, y).bias) < 0.02


def test_an_interval_is_about_the_estimate_however_biased_resamples_are():
    """The number of different clips, whose distribution in resamples is known."""
    n = 50
    found = bootstrap(lambda _: lambda counts: float((counts > 0).sum()), np.arange(n))
    one, two = (1 - 1 / n) ** n, (1 - 2 / n) ** n  # the chances that one, and that two are missing
    deviation = (n * one + n * (n - 1) * two - (n * one) ** 2) ** 0.5
    assert found.estimate == n
    assert found.bias == pytest.approx(-n * one, abs=4 * deviation / 100**0.5)
    assert found.low == pytest.approx(n - 1.96 * deviation, abs=deviation)
    assert found.high == pytest.approx(n + 1.96 * deviation, abs=deviation)


def test_resampled_moments_are_those_of_repeated_clips():
    x, y = draw(0)
    counts = np.random.default_rng(1).multinomial(CLIPS, [1 / CLIPS] * CLIPS)
    repeated = np.repeat(x, counts, 0)
    ones = np.ones(CLIPS, np.int64)
    assert np.isclose(frechet_of_resamples(x, y)(counts, ones), frechet(repeated, y), rtol=1e-10)


def test_a_repeated_clip_is_not_compared_with_itself():
    x, y = draw(0)
    counts = np.ones(CLIPS, np.int64)
    counts[3], counts[4] = 2, 0
    pairs = [
        (i, j)
        for a, i in enumerate(np.repeat(np.arange(CLIPS), counts))
        for b, j in enumerate(np.repeat(np.arange(CLIPS), counts))
        if a != b and i != j
    ]

    def mean(pairs, x, y):
        return np.mean([(x[i] @ y[j] / WIDTH + 1) ** 3 for i, j in pairs])

    ones = np.ones(CLIPS, np.int64)
    others = [(i, j) for i in range(CLIPS) for j in range(CLIPS) if i != j]
    across = [(i, j) for i in np.repeat(np.arange(CLIPS), counts) for j in range(CLIPS)]
    expected = mean(pairs, x, x) + mean(others, y, y) - 2 * mean(across, x, y)
    assert np.isclose(kernel_of_resamples(x, y)(counts, ones), expected, rtol=1e-10)


def test_means_have_the_interval_of_the_normal_distribution():
    values = np.random.default_rng(0).standard_normal(400)
    found = bootstrap(mean_of_resamples, values, resamples=2000, level=0.9)
    assert np.isclose(found.estimate, values.mean(), rtol=1e-12)
    expected = 1.645 * values.std() / np.sqrt(400)
    assert abs((found.high - found.low) / (2 * expected) - 1) < 0.1


def test_seeds_decide():
    x, y = draw(0)
    first, again, other = (bootstrap(kernel_of_resamples, x, y, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other


def test_senseless_intervals_are_refused():
    x, y = draw(0)
    with pytest.raises(UserError, match="9 clips are too few"):
        bootstrap(kernel_of_resamples, x[:9], y)
    with pytest.raises(UserError, match=r"level 1\.5 from 100"):
        bootstrap(kernel_of_resamples, x, y, level=1.5)
    with pytest.raises(UserError, match="from 1 resamples"):
        bootstrap(kernel_of_resamples, x, y, resamples=1)
