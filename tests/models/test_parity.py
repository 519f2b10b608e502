"""Every network against the numbers of the PyTorch release, float32."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.models.clip import preprocess

TAPS = [
    "input_0",
    "init_attn",
    *(f"input_{i}" for i in range(1, 6)),
    "middle",
    *(f"output_{i}" for i in range(6)),
]


@functools.cache
def run_unet(kind):
    """Returns a compiled U-Net that also gives the output of each of its blocks."""
    unet, golden = tiny.models(kind).unet, tiny.golden(f"tiny_{kind}_modules")

    def is_block(module, _):
        return module.name in TAPS

    @jax.jit
    def run(params, x, text, image, timesteps, fs):
        inputs = (x, timesteps, text, image, fs)
        return unet.apply({"params": params}, *inputs, capture_intermediates=is_block)

    def scaled(scale):
        image = golden["image_context"].reshape(2, 4, 16, 48)
        inputs = (golden["x"], golden["text_context"], image)
        return run(
            tiny.params(kind, "unet"),
            *(jnp.float32(scale) * x for x in inputs),
            golden["timesteps"],
            golden["fs"],
        )

    return scaled


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_unet_and_each_of_its_blocks(relative_error, kind):
    golden = tiny.golden(f"tiny_{kind}_modules")
    prediction, captured = run_unet(kind)(1.0)
    assert relative_error(prediction, golden["unet"]) < 1e-5
    for name in TAPS:
        (block,) = captured["intermediates"][name]["__call__"]
        assert relative_error(block[0], golden[f"tap_{name}"]) < 1e-5, name


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_unet_on_small_inputs_where_epsilons_show(relative_error, kind):
    prediction, _ = run_unet(kind)(0.01)
    assert relative_error(prediction, tiny.golden(f"tiny_{kind}_modules")["unet_small"]) < 1e-5


# At t == 4 the 64 tokens are 16 a frame; otherwise all frames read all of them. 96 are 16 for 6.
FRAMES = {
    "2": (2, 64, 48),
    "3": (2, 64, 48),
    "4": (2, 4, 16, 48),
    "6": (2, 64, 48),
    "16": (2, 64, 48),
    "6_split": (2, 6, 16, 48),
}


@pytest.mark.parametrize(
    "case", ["3", *(pytest.param(case, marks=pytest.mark.slow) for case in FRAMES if case != "3")]
)
def test_unet_on_other_numbers_of_frames(relative_error, case):
    golden = tiny.golden("tiny_v_frames")
    t, _, split = case.partition("_")
    tokens = golden["image_context_96" if split else "image_context"].reshape(FRAMES[case])
    inputs = golden[f"x_{t}"], golden["timesteps"], golden["text_context"], tokens, golden["fs"]
    params = {"unet": tiny.params("v", "unet")}
    prediction = jax.jit(functools.partial(tiny.models("v").apply, "unet"))(params, *inputs)
    assert relative_error(prediction, golden[f"unet_{case}"]) < 1e-5


def apply(name, *inputs, method=None):
    run = functools.partial(tiny.models("v").apply, name, method=method)
    return jax.jit(run)({name: tiny.params("v", name)}, *map(jnp.asarray, inputs))


def test_vae(relative_error):
    golden = tiny.golden("tiny_v_modules")
    moments = apply("vae", tiny.pictures(), method="moments")
    assert relative_error(moments, golden["vae_moments"]) < 1e-5
    decoded = apply("vae", golden["vae_z"], method="decode")
    assert relative_error(decoded, golden["vae_decoded"]) < 1e-5


def test_text_tower(relative_error):
    states = apply("text_encoder", tiny.token_ids()[[1, 0]])
    assert relative_error(states, tiny.golden("tiny_v_modules")["text_tower"]) < 1e-5


def test_vision_tower_and_projector(relative_error):
    golden = tiny.golden("tiny_v_modules")
    tokens = apply("image_encoder", preprocess(jnp.asarray(tiny.pictures())))
    assert relative_error(tokens[:, ::8], golden["vision_tower"]) < 1e-5
    context = apply("projector", tokens)
    assert context.shape == (2, 4, 16, 48)
    assert relative_error(context.reshape(2, 64, 48), golden["resampler"]) < 1e-5


@pytest.mark.parametrize("size", ["64x96", "256x256", "320x512", "576x1024", "450x300", "1000x600"])
def test_preprocessing(relative_error, size):
    golden = tiny.golden("clip_preprocess")
    h, w = map(int, size.split("x"))
    picture = golden_weights.picture(int(golden[f"seed_{size}"]), h, w)
    ours = np.asarray(preprocess(jnp.asarray(picture)[None]))[0, ::4, ::4]
    assert relative_error(ours, golden[f"out_{size}"]) < 5e-5
