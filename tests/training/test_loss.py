"""The release's training loss and every gradient of it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dynamicrafter_jax import conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.diffusion.loss import denoising_loss
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.weights.release import release_tensors

KINDS = ["v", pytest.param("eps", marks=pytest.mark.slow)]


@functools.cache
def loss_and_gradient(kind):
    """Our loss and gradient on the golden inputs."""
    golden, models = tiny.golden(f"loss_{kind}"), tiny.models(kind)
    schedule = make_schedule(**tiny.config(kind).diffusion.to_dict())

    def loss(params):
        tokens = jnp.asarray(golden["vision_tokens"])
        condition = Conditioning(
            text=jnp.asarray(golden["text_context"]),
            image=conditioning.project_tokens(models, params, tokens),
            concat=jnp.asarray(golden["concat"]),
            fs=jnp.asarray(golden["fs"], jnp.float32),
        )
        unet = conditioning.conditioned_unet(models, params)
        clips = denoising_loss(
            lambda x, timestep: unet(x, timestep, condition),
            schedule,
            jnp.asarray(golden["z"]),
            jnp.asarray(golden["noise"]),
            jnp.asarray(golden["timesteps"], jnp.int32),
        )
        return clips.mean()

    params = {name: tiny.params(kind, name) for name in ("unet", "projector")}
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_releases(kind):
    loss, _ = loss_and_gradient(kind)
    assert abs(float(loss) - float(tiny.golden(f"loss_{kind}")["loss"])) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_has_the_releases_norm(kind):
    golden = tiny.golden(f"loss_{kind}")
    _, gradient = loss_and_gradient(kind)
    boxed = abstract_models(tiny.models(kind))
    ours = {}
    for name, tensor in release_tensors({key: boxed[key] for key in gradient}).items():
        leaf = functools.reduce(lambda tree, key: tree[key], tensor.path, gradient)
        ours[name] = float(jnp.linalg.norm(leaf.ravel()))
    wanted = json.loads(str(golden["grad_norms"]))
    assert set(ours) == set(wanted)
    worst = max(wanted, key=lambda name: abs(ours[name] / wanted[name] - 1))
    assert abs(ours[worst] / wanted[worst] - 1) < 1e-4, worst
    assert np.isclose(optax.tree.norm(gradient), golden["grad_norm"], rtol=1e-5)
