import functools

import numpy as np
import pytest
from release_files import manifest, same_bits

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.weights.release import schedule_buffers, unused_tensors

CONFIGS = {"256": "i2v_256", "512": "i2v_512", "1024": "i2v_1024"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_rebuilt_buffers_are_those_of_the_release(golden, kind):
    config = load_config(CONFIGS[kind])
    ours = schedule_buffers(config.diffusion.to_dict())
    with np.load(golden / "schedule.npz") as tables:
        assert same_bits(ours["alphas_cumprod"], tables[f"alphas_cumprod_{kind}"])
        if kind != "256":
            assert same_bits(ours["scale_arr"][:1000], tables[f"scale_arr_{kind}"])
            assert set(ours["scale_arr"][1000:]) == {ours["scale_arr"][999]}
    fates = unused_tensors(config.text_encoder.layers)
    names = {name for name in manifest(kind) if fates.get(name) == "rebuilt"}
    assert {name: table.shape for name, table in ours.items()} == {
        name: manifest(kind)[name] for name in names
    }


@pytest.mark.parametrize("kind", ["256", "512"])
def test_buffers_agree_with_one_another(kind):
    """The posterior by Bayes' rule, from the two Gaussians that it joins."""
    ours = schedule_buffers(load_config(CONFIGS[kind]).diffusion.to_dict())
    ours = {name: table.astype(np.float64) for name, table in ours.items()}
    beta, alpha_bar, previous = (
        ours[name] for name in ("betas", "alphas_cumprod", "alphas_cumprod_prev")
    )
    close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=1e-7)
    close(previous, [1, *alpha_bar[:-1]])
    close(alpha_bar, previous * (1 - beta))
    close(ours["sqrt_alphas_cumprod"] ** 2, alpha_bar)
    close(ours["sqrt_one_minus_alphas_cumprod"] ** 2, 1 - alpha_bar)
    close(np.exp(ours["log_one_minus_alphas_cumprod"]), 1 - alpha_bar)
    later = slice(1, -1)  # x_0 is known at the start, and the last step may leave no signal
    posterior = {name: table[later] for name, table in ours.items() if "posterior" in name}
    beta, previous = beta[later], previous[later]
    precision = 1 / (1 - previous) + (1 - beta) / beta
    close(posterior["posterior_variance"], 1 / precision)
    close(np.exp(posterior["posterior_log_variance_clipped"]), 1 / precision)
    close(posterior["posterior_mean_coef1"], np.sqrt(previous) / (1 - previous) / precision)
    close(posterior["posterior_mean_coef2"], np.sqrt(1 - beta) / beta / precision)
    assert ours["posterior_variance"][0] == 0
    assert ours["posterior_log_variance_clipped"][0] == pytest.approx(np.log(1e-20))
    if kind == "256":
        close(ours["sqrt_recip_alphas_cumprod"] ** 2, 1 / alpha_bar)
        close(ours["sqrt_recipm1_alphas_cumprod"] ** 2, 1 / alpha_bar - 1)
    else:
        assert not ours["sqrt_recip_alphas_cumprod"].any()
        assert not ours["sqrt_recipm1_alphas_cumprod"].any()
