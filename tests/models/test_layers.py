"""Initial values, names of axes, types and shapes: what golden weights do not show."""

import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.attention import plain_attention, plain_temporal_attention
from dynamicrafter_jax.models.autoencoder import Autoencoder
from dynamicrafter_jax.models.blocks import Dropout
from dynamicrafter_jax.models.layers import (
    Common,
    Conv,
    GroupNorm,
    Linear,
    Module,
    Parameter,
    TemporalConv,
    abstract_params,
    init_params,
)
from dynamicrafter_jax.models.transformers import SpatialTransformer
from dynamicrafter_jax.models.unet import UNet, sinusoid

KEY = jax.random.key(0)
BFLOAT16 = Common(dtype=jnp.bfloat16)
IDENTITY = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}

# One level, one block of each kind: all that structure needs, and quick to compile.
SMALL = UNet(
    model_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(1,),
    num_head_channels=16,
    context_dim=48,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def leaves(boxed):
    return jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter)
    )


def unet_inputs(batch=1, frames=3, height=4, width=6):
    return (
        normal(0, batch, frames, height, width, 8),
        jnp.full((batch,), 500.0),
        normal(1, batch, 7, 48),
        normal(2, batch, frames, 5, 48),
        jnp.full((batch,), 24.0),
    )


@functools.cache
def small_params():
    """Random parameters without a zero among them, so that every layer acts."""
    params = init_params(abstract_params(SMALL, *unet_inputs()), KEY)
    return jax.tree.map(lambda leaf: leaf + 0.05 * normal(leaf.size, *leaf.shape), params)


@functools.partial(jax.jit, static_argnums=0)
def run(unet, params, *inputs, dropout_keys=None):
    return unet.apply({"params": params}, *inputs, dropout_keys)


def test_every_parameter_names_each_of_its_axes():
    for section, boxed in abstract_models(tiny.models("eps")).items():
        for path, box in leaves(boxed):
            assert len(box.names) == box.value.ndim, (section, path)


def test_a_parameter_of_another_shape_is_refused():
    params = {"kernel": jnp.ones((25, 7)), "bias": jnp.ones(8)}
    said = r'"kernel" in "".*shape \(25, 8\).*has shape \(25, 7\)'
    with pytest.raises(flax.errors.ScopeParamShapeError, match=said):
        Linear((8,), ("embed", "mlp")).apply({"params": params}, normal(0, 2, 25))


def test_networks_of_a_config_are_found_again_where_the_same_were_built():
    ours, theirs = tiny.models("v"), networks_of(tiny.config("v"))
    assert ours == theirs and hash(ours) == hash(theirs)


def test_leaves_are_drawn_within_the_bounds_of_their_fan_in_and_independently():
    module = Linear((40, 50), ("embed", "heads", "head_width"))
    x = normal(0, 2, 25)
    params = init_params(abstract_params(module, x), KEY)
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    for value in (kernel, bias):
        assert np.abs(value).max() <= 0.2  # 1 / sqrt(25)
        assert np.abs(value).max() > 0.19 and abs(value.mean()) < 0.02
    assert not np.array_equal(kernel[0].ravel(), bias.ravel())


def test_a_leaf_does_not_depend_on_its_neighbours_or_on_how_it_is_drawn():
    class Two(nn.Module):
        extra: bool

        @nn.compact
        def __call__(self, x):
            y = Conv(5, name="kept")(x)
            return Conv(7, name="new")(y) if self.extra else y

    x = normal(0, 1, 4, 4, 3)
    alone, both = (init_params(abstract_params(Two(extra), x), KEY) for extra in (False, True))
    assert np.array_equal(alone["kept"]["kernel"], both["kept"]["kernel"])
    box = abstract_params(Two(False), x)["kept"]["kernel"]
    whole = jax.random.uniform(jax.random.key(3), box.value.shape, minval=-1, maxval=1)
    longer = jax.random.uniform(jax.random.key(3), (1024,), minval=-1, maxval=1)
    assert np.array_equal(np.ravel(whole), longer[: whole.size])


def test_a_fresh_unet_predicts_zero_and_its_blocks_change_nothing():
    params = init_params(abstract_params(SMALL, *unet_inputs()), KEY)
    assert np.all(run(SMALL, params, *unet_inputs()) == 0)
    block = params["input_1"]
    for last in (
        block["res"]["conv2"],
        block["res"]["temporal_conv"]["conv4"],
        block["spatial"]["proj_out"],
        block["temporal"]["proj_out"],
        params["init_attn"]["proj_out"],
        params["fs_embed"]["out"],
        params["out"],
    ):
        assert np.all(last["kernel"] == 0) and np.all(last["bias"] == 0)


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    exact = np.asarray(run(SMALL, small_params(), *unet_inputs()))
    rough = run(SMALL.clone(common=BFLOAT16), small_params(), *unet_inputs())
    assert rough.dtype == jnp.bfloat16
    error = np.asarray(rough, np.float32) - exact
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(exact**2))


def test_parameters_are_stored_in_the_type_asked_for():
    for boxed in abstract_models(tiny.models("v", param_dtype=jnp.bfloat16)).values():
        for _, box in leaves(boxed):
            assert box.value.dtype == jnp.bfloat16


def commons(models):
    """What the layers of each network were given, by the network's class."""
    found = {}

    def note(call, args, kwargs, context):
        layer = context.module
        of_network = found.setdefault(type(layer), set()) if not layer.path else found["last"]
        found["last"] = of_network
        of_network.add(layer.common)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        abstract_models(models)
    return {type(network): found[type(network)] for network in models}


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_all_layers_of_a_network_have_what_it_was_given(remat):
    given: dict[str, Any] = {
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.float16,
        "attention": functools.partial(plain_attention),
        "temporal_attention": functools.partial(plain_temporal_attention),
    }
    models = tiny.models("v", **given)
    unet, vae = models.unet.clone(norm_groups=16, remat=remat), models.vae.clone(norm_groups=8)
    towers = {type(network): {Common(**given)} for network in models[2:]}
    assert commons(models._replace(unet=unet, vae=vae)) == {
        UNet: {Common(**given, norm_groups=16)},
        Autoencoder: {Common(**given, norm_groups=8)},
        **towers,
    }


def test_a_layer_keeps_what_it_is_given_itself():
    class Outer(Module):
        @nn.compact
        def __call__(self, x):
            x = GroupNorm(name="taken_over")(x)
            return GroupNorm(name="own", common=Common())(x)

    params = abstract_params(Outer(common=Common(param_dtype=jnp.bfloat16)), normal(0, 1, 2, 3, 64))
    assert params["taken_over"]["scale"].value.dtype == jnp.bfloat16
    assert params["own"]["scale"].value.dtype == jnp.float32


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_number_of_frames_runs(frames):
    prediction = run(SMALL, small_params(), *unet_inputs(frames=frames))
    assert prediction.shape == (1, frames, 4, 6, 4) and np.all(np.isfinite(prediction))


def test_clips_of_a_batch_do_not_see_each_other(relative_error):
    inputs = unet_inputs(batch=2)
    both = run(SMALL, small_params(), *inputs)
    second = run(SMALL, small_params(), *(x[1:] for x in inputs))
    assert relative_error(both[1:], second) < 1e-5


def test_frames_see_only_their_own_image_tokens():
    """The image tokens of the last frame reach the others through time alone."""
    module = SpatialTransformer(4, 8)
    x, text, image = normal(0, 1, 3, 4, 4, 32), normal(1, 1, 7, 48), normal(2, 1, 3, 5, 48)
    params = init_params(abstract_params(module, x, text, image), KEY)
    params["proj_out"]["kernel"] = normal(3, 32, 32)
    attend = jax.jit(functools.partial(module.apply, {"params": params}, x, text))
    before = np.asarray(attend(image))
    after = np.asarray(attend(image.at[:, 2].add(1.0)))
    assert np.array_equal(before[:, :2], after[:, :2])
    assert not np.allclose(before[:, 2], after[:, 2])


def test_wrong_channels_sides_and_widths_are_refused():
    inputs = list(unet_inputs())
    with pytest.raises(ValueError, match="8 channels, got 4"):
        abstract_params(SMALL, inputs[0][..., :4], *inputs[1:])
    with pytest.raises(ValueError, match=r"multiples of 2, got \(3, 6\)"):
        abstract_params(SMALL, inputs[0][:, :, :3], *inputs[1:])
    with pytest.raises(ValueError, match="48 wide, got 47"):
        abstract_params(SMALL, *inputs[:2], *(x[..., :47] for x in inputs[2:4]), inputs[4])
    with pytest.raises(ValueError, match="64 wide, got 63"):
        abstract_params(tiny.models("v").projector, normal(0, 1, 5, 63))


def test_dropout_acts_in_training_alone():
    inputs = unet_inputs()
    still = run(SMALL, small_params(), *inputs)
    keys = jax.random.split(KEY, len(still))
    dropped = run(SMALL, small_params(), *inputs, dropout_keys=keys)
    assert not np.allclose(still, dropped)


def test_a_clip_is_dropped_alike_wherever_it_stands_in_a_batch():
    layer = Dropout(0.1)
    x, keys = normal(0, 3, 40, 50), jax.random.split(KEY, 3)
    together: Any = layer.apply({}, x, keys)
    alone: Any = layer.apply({}, x[2:], keys[2:])
    assert np.array_equal(together[2:], alone)
    share = np.mean(np.asarray(together) == 0, (1, 2))
    assert np.all(np.abs(share - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000))
    kept = together != 0
    assert np.allclose(together[kept], x[kept] / 0.9, rtol=1e-4)
    untouched: Any = layer.apply({}, x, None)
    assert untouched is x


def micro_gradient(remat):
    """The gradient of a U-Net that recomputes, lowered, and its parameters."""
    model = tiny.micro()
    x, timestep, text, image, fs = unet_inputs()

    def loss(params):
        unet = model.models.unet.clone(remat=remat)
        inputs = (x, timestep, text[..., :16], image[..., :16], fs)
        prediction: Any = unet.apply({"params": params}, *inputs)
        return jnp.square(prediction).sum()

    return jax.jit(jax.grad(loss)).lower(model.params["unet"]), model.params["unet"]


def test_each_remat_policy_recomputes_more_than_the_one_before():
    policies = ("none", "products", "blocks")
    costs: list[Any] = [micro_gradient(remat)[0].cost_analysis() for remat in policies]
    flops = [cost["flops"] for cost in costs]
    assert flops[0] < flops[1] < flops[2]


@pytest.mark.slow
def test_recomputing_changes_no_gradient():
    programs = [micro_gradient(remat) for remat in ("none", "products", "blocks")]
    wanted, *others = (program.compile()(params) for program, params in programs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for ours in others:
        for leaf, wanted_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            assert np.allclose(leaf, wanted_leaf, rtol=1e-4, atol=1e-6 * largest)


def test_an_unknown_remat_policy_is_refused():
    with pytest.raises(ValueError, match="'dots': choose from none, products, blocks"):
        abstract_params(SMALL.clone(remat="dots"), *unet_inputs())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 64), (2, 7, 5, 64)])
def test_group_norm_against_numpy(relative_error, shape):
    x = 3 + 2 * normal(0, *shape)
    params = {"scale": normal(1, 64), "bias": normal(2, 64)}
    grouped = np.asarray(x, np.float64).reshape(*shape[:-1], 32, 2)
    mean, var = (moment((-4, -3, -1), keepdims=True) for moment in (grouped.mean, grouped.var))
    wanted = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    wanted = wanted * np.asarray(params["scale"]) + np.asarray(params["bias"])
    assert relative_error(GroupNorm().apply({"params": params}, x), wanted) < 1e-6


def test_group_norm_is_safe_where_the_mean_is_far_from_zero(relative_error):
    x = 1000 + normal(0, 1, 6, 7, 32)
    ours: Any = GroupNorm(common=BFLOAT16).apply({"params": IDENTITY}, x.astype(jnp.bfloat16))
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float64)
    wanted = (rounded - rounded.mean((1, 2))) / np.sqrt(rounded.var((1, 2)) + 1e-5)
    assert relative_error(ours.astype(jnp.float32), wanted) < 1e-2


def test_temporal_conv_against_numpy(relative_error):
    x, kernel, bias = normal(0, 2, 5, 6, 4), normal(1, 3, 4, 6), normal(2, 6)
    ours = TemporalConv(6).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    wanted = np.zeros((2, 5, 6, 6)) + np.asarray(bias)
    for t in range(5):
        for tap in range(3):
            if 0 <= t + tap - 1 < 5:
                wanted[:, t] += np.asarray(x[:, t + tap - 1]) @ np.asarray(kernel[tap])
    assert relative_error(ours, wanted) < 1e-6


def test_sinusoid_is_cosines_then_sines():
    embedding = np.asarray(sinusoid(jnp.asarray([0.0, 7.0]), 6))
    frequency = 10000.0 ** (-np.arange(3) / 3)
    assert np.allclose(embedding[0], [1, 1, 1, 0, 0, 0])
    assert np.allclose(embedding[1], [*np.cos(7 * frequency), *np.sin(7 * frequency)], atol=1e-6)
