import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.diffusion.prediction import add_noise, target, to_x0_and_eps

SHAPE = (3, 4, 2, 5, 4)
PER_SAMPLE = np.array([0.9, 0.3, 0.01], np.float32)


def levels(alpha_bar):
    """The factors on x0 and on the noise."""
    return np.sqrt(alpha_bar), np.sqrt(1 - np.asarray(alpha_bar))


@pytest.fixture
def x0_and_eps():
    draw = np.random.default_rng(0).standard_normal
    return jnp.asarray(draw(SHAPE), jnp.float32), jnp.asarray(draw(SHAPE), jnp.float32)


@pytest.mark.parametrize("alpha_bar", [0.3, PER_SAMPLE])
def test_noise_and_velocity_follow_their_definitions(x0_and_eps, relative_error, alpha_bar):
    x0, eps = x0_and_eps
    signal = np.sqrt(np.asarray(alpha_bar, np.float64).reshape(-1, 1, 1, 1, 1))
    noise = np.sqrt(1 - signal**2)
    wanted_x = signal * np.asarray(x0, np.float64) + noise * np.asarray(eps, np.float64)
    wanted_v = signal * np.asarray(eps, np.float64) - noise * np.asarray(x0, np.float64)
    assert relative_error(add_noise(x0, eps, *levels(alpha_bar)), wanted_x) < 1e-6
    assert relative_error(target("v", x0, eps, *levels(alpha_bar)), wanted_v) < 1e-6
    assert np.array_equal(target("eps", x0, eps, *levels(alpha_bar)), eps)


@pytest.mark.parametrize("alpha_bar", [0.3, PER_SAMPLE])
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_perfect_prediction_gives_back_x0_and_eps(
    x0_and_eps, relative_error, parameterization, alpha_bar
):
    x0, eps = x0_and_eps
    x = add_noise(x0, eps, *levels(alpha_bar))
    prediction = target(parameterization, x0, eps, *levels(alpha_bar))
    our_x0, our_eps = to_x0_and_eps(parameterization, x, prediction, alpha_bar)
    assert relative_error(our_x0, x0) < 5e-6
    assert relative_error(our_eps, eps) < 5e-6


@pytest.mark.parametrize("alpha_bar", [0.0, 1.0])
def test_velocity_is_defined_where_there_is_only_noise_or_only_signal(x0_and_eps, alpha_bar):
    x0, eps = x0_and_eps
    x = add_noise(x0, eps, *levels(alpha_bar))
    v = target("v", x0, eps, *levels(alpha_bar))
    our_x0, our_eps = to_x0_and_eps("v", x, v, alpha_bar)
    assert np.array_equal(our_x0, x0)
    assert np.array_equal(our_eps, eps)


def test_x_and_velocity_are_a_rotation_of_x0_and_eps(x0_and_eps, relative_error):
    x0, eps = x0_and_eps
    x = add_noise(x0, eps, *levels(PER_SAMPLE))
    v = target("v", x0, eps, *levels(PER_SAMPLE))
    assert relative_error(x**2 + v**2, x0**2 + eps**2) < 1e-6


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_bfloat16_arrays_are_combined_in_float32(x0_and_eps, parameterization):
    rough = [array.astype(jnp.bfloat16) for array in x0_and_eps]
    exact = [array.astype(jnp.float32) for array in rough]
    for function in (
        lambda x0, eps: add_noise(x0, eps, *levels(PER_SAMPLE)),
        lambda x0, eps: target(parameterization, x0, eps, *levels(PER_SAMPLE)),
        lambda x, prediction: to_x0_and_eps(parameterization, x, prediction, PER_SAMPLE)[0],
        lambda x, prediction: to_x0_and_eps(parameterization, x, prediction, PER_SAMPLE)[1],
    ):
        assert function(*rough).dtype == jnp.float32
        assert np.array_equal(function(*rough), function(*exact))
