import re

import jax.numpy as jnp
import numpy as np
import pytest
from release_files import FROZEN, write
from start_files import (
    KEY,
    SECTIONS,
    TEXT,
    UNET,
    VAE,
    assert_same,
    begin,
    drawn,
    expected,
    refusal,
    release,
    small,
)

from dynamicrafter_jax.convert import convert
from dynamicrafter_jax.weights.warm_start import open_start

INPUT = UNET + "input_blocks.0.0.weight"
IMAGE_KEY = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight"


@pytest.fixture(scope="module")
def release_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("release") / "model.safetensors", release())


@pytest.fixture(scope="module")
def converted(tmp_path_factory, release_file):
    directory = tmp_path_factory.mktemp("converted") / "model"
    convert(release_file, directory, small())
    return directory


def text_to_video(**changes):
    """The tensors of a VideoCrafter file; a change of None takes one away."""
    theirs = {
        name: values
        for name, values in release(UNET, VAE, TEXT).items()
        if not name.endswith(("to_k_ip.weight", "to_v_ip.weight"))
    }
    theirs[INPUT] = theirs[INPUT][:, :4]
    theirs |= {"scale_arr": np.ones(1400, np.float32), **changes}
    return {name: values for name, values in theirs.items() if values is not None}


def test_nothing_given_is_wholly_fresh():
    start, ours = begin(checkpoint=None, vae="")
    assert start.sources == {} and set(start.fresh) == set(drawn())
    assert_same(ours, drawn())
    assert start.summary() == ["fresh: image_encoder, projector, text_encoder, unet, vae"]


def test_a_release_file_is_a_checkpoint(release_file):
    start, ours = begin(checkpoint=str(release_file))
    assert start.fresh == () and set(start.sources) == set(SECTIONS)
    assert start.sources["vae"].path == str(release_file)
    assert_same(ours, expected(*SECTIONS))
    assert start.summary() == [f"{name}: {release_file} (release)" for name in start.sources]


def test_a_converted_model_is_a_checkpoint(converted):
    config = small()
    config.precision.param_dtype = "bfloat16"
    start, ours = begin(config, checkpoint=converted)
    assert start.fresh == () and start.sources["unet"].kind == "converted model"
    halves = {path: v.astype(jnp.bfloat16) for path, v in expected(*SECTIONS).items()}
    assert_same(ours, halves)


def test_another_noise_schedule_is_pointed_out(tmp_path, converted):
    wrong = release() | {"alphas_cumprod": np.linspace(1, 0, 1000, dtype=np.float32)}
    path = write(tmp_path / "model.safetensors", wrong)
    with pytest.warns(UserWarning, match=r"another noise schedule .*its alphas_cumprod differs"):
        _, ours = begin(checkpoint=path)
    assert_same(ours, expected("unet"))
    config = small()
    config.diffusion.base_scale = 0.3
    with (
        pytest.warns(UserWarning, match="another noise schedule"),
        open_start(config, {"checkpoint": converted}, KEY) as start,
    ):
        assert start.fresh == ()


def test_a_checkpoint_must_fit(tmp_path, release_file, converted):
    config = small()
    config.unet.image_cross_attention_scale_learnable = True
    name = "input_blocks.1.1.transformer_blocks.0.attn2.alpha"
    assert f"missing: {UNET}{name}" in refusal(config, checkpoint=release_file)
    assert "missing: input_1/spatial/attn2/alpha" in refusal(config, checkpoint=converted)
    path = write(tmp_path / "model.safetensors", release() | {"model.extra": np.ones(2)})
    assert "1 unexpected: model.extra (2,)" in refusal(checkpoint=path)
    assert "does not exist" in refusal(checkpoint=tmp_path / "absent.safetensors")
    part = {n: v for n, v in release().items() if not n.startswith("image_proj_model.")}
    path = write(tmp_path / "model.safetensors", part)
    assert "18 missing: image_proj_model." in refusal(checkpoint=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_to_video_grows_to_image_to_video(tmp_path, release_file, dtype):
    theirs = {name: v.astype(jnp.dtype(dtype)) for name, v in text_to_video().items()}
    path = write(tmp_path / "t2v.safetensors", theirs)
    start, ours = begin(videocrafter=path, towers=release_file)

    kernel = ours["unet/input_0/kernel"]
    noisy = theirs[INPUT].astype(np.float32).transpose(2, 3, 1, 0)
    assert kernel.shape == (3, 3, 8, 32)
    assert np.array_equal(kernel[:, :, :4], noisy) and not kernel[:, :, 4:].any()

    fresh = {path for path in drawn() if re.search(r"/image_(key|value)/|^projector/", path)}
    assert set(start.fresh) == fresh
    assert_same(ours, {path: drawn()[path] for path in fresh})
    rest = set(drawn()) - fresh - {"unet/input_0/kernel"}
    stored = {
        path: values.astype(jnp.dtype(dtype)).astype(np.float32)
        for path, values in expected("unet", "vae", "text_encoder").items()
    }
    assert_same(ours, {p: v for p, v in stored.items() if p in rest})
    assert_same(ours, expected("image_encoder"))
    kinds = {name: source.kind for name, source in start.sources.items()}
    videocrafter = dict.fromkeys(("unet", "vae", "text_encoder"), "VideoCrafter")
    assert kinds == {**videocrafter, "image_encoder": "release"}
    unet, *_, last = start.summary()
    assert unet.startswith(f"unet: {path} (VideoCrafter); 8 parameters fresh: unet/input_1/spatial")
    assert unet.endswith("and 4 more") and last == "fresh: projector"


def test_the_fs_embedding_and_image_scales_may_start_fresh(tmp_path, release_file):
    lacking = {name: None for name in release(UNET + "fps_embedding.")}
    path = write(tmp_path / "t2v.safetensors", text_to_video(**lacking))
    config = small()
    config.unet.image_cross_attention_scale_learnable = True
    start, ours = begin(config, videocrafter=path, towers=release_file)
    blocks = ("input_1", "middle", "output_0", "output_1")
    assert {f"unet/{block}/spatial/attn2/alpha" for block in blocks} <= set(start.fresh)
    embedding = {name for name in drawn() if name.startswith("unet/fs_embed/")}
    assert len(embedding) == 4 and embedding <= set(start.fresh)
    assert not ours["unet/fs_embed/out/kernel"].any() and ours["unet/fs_embed/in/kernel"].any()


def test_text_to_video_is_partial_by_the_list_alone(tmp_path, release_file):
    def refused(**changes):
        path = write(tmp_path / "t2v.safetensors", text_to_video(**changes))
        return refusal(videocrafter=path, towers=release_file)

    lacking, half = UNET + "time_embed.0.bias", UNET + "fps_embedding.0.bias"
    assert f"1 missing: {lacking}" in refused(**{lacking: None})
    assert f"1 missing: {half}" in refused(**{half: None})
    message = refused(**{IMAGE_KEY: release()[IMAGE_KEY]})
    assert "7 missing: " in message and "to_v_ip.weight" in message
    assert "1 unexpected: lora (2,)" in refused(lora=np.ones(2, np.float32))
    message = refused(**{lacking: np.ones(3, np.float32)})
    assert f"1 misshapen: {lacking} (3,) instead of (128,)" in message
    message = refused(**{INPUT: release()[INPUT][:, :5]})
    assert f"1 misshapen: {INPUT} (32, 5, 3, 3) instead of (32, 8, 3, 3)" in message
    half_vae = {name: None for name in release(VAE + "encoder.")}
    assert f"missing: {VAE}encoder." in refused(**half_vae)


def test_models_that_are_no_text_to_video_are_refused(tmp_path, release_file):
    message = refusal(videocrafter=release_file)
    assert "its U-Net takes 8 channels" in message and "give it as init.checkpoint" in message
    table = UNET + "init_attn.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table"
    old = text_to_video(**{table: np.ones((33, 16), np.float32)})
    path = write(tmp_path / "t2v.safetensors", old)
    assert "relative positions along time" in refusal(videocrafter=path, towers=release_file)
    message = refusal(videocrafter=path, checkpoint=release_file)
    assert "init.checkpoint and init.videocrafter exclude each other" in message


def test_frozen_networks_are_never_random_unasked(tmp_path, release_file):
    path = write(tmp_path / "t2v.safetensors", text_to_video())
    assert refusal(videocrafter=path) == (
        "no source has the image_encoder, which would stay frozen at random values: "
        "give init.clip, or init.towers"
    )
    part = {name: v for name, v in release().items() if not name.startswith(FROZEN)}
    path = write(tmp_path / "unet.safetensors", part)
    message = refusal(checkpoint=path)
    assert "the vae and the text_encoder and the image_encoder" in message
    assert "give init.clip and init.vae, or init.towers" in message
    start, ours = begin(checkpoint=path, random_towers=True)
    assert_same(ours, expected("unet", "projector"))
    assert {name.split("/")[0] for name in start.fresh} == {"vae", "text_encoder", "image_encoder"}
    assert_same(ours, {name: drawn()[name] for name in start.fresh})


@pytest.mark.parametrize("kind", ["release", "converted model"])
def test_towers_give_what_nothing_else_gives(tmp_path, release_file, converted, kind):
    towers = {"release": release_file, "converted model": converted}[kind]
    part = {name: v for name, v in release().items() if not name.startswith(FROZEN[1:])}
    part = {name: 2 * v if name.startswith(VAE) else v for name, v in part.items()}
    path = write(tmp_path / "part.safetensors", part)
    start, ours = begin(checkpoint=path, towers=towers)
    assert_same(ours, expected("unet", "projector", "text_encoder", "image_encoder"))
    assert_same(ours, {name: 2 * values for name, values in expected("vae").items()})
    kinds = {name: source.kind for name, source in start.sources.items()}
    assert kinds == dict.fromkeys(SECTIONS, kind) | dict.fromkeys(
        ("unet", "vae", "projector"), "release"
    )


def test_towers_that_are_not_needed_are_not_read(tmp_path, release_file):
    with pytest.warns(UserWarning, match="is not read: no frozen network is missing"):
        begin(checkpoint=release_file, towers=tmp_path / "absent.safetensors")


def test_towers_alone_leave_the_rest_fresh(release_file):
    start, ours = begin(towers=release_file)
    assert {name.split("/")[0] for name in start.fresh} == {"unet", "projector"}
    assert_same(ours, expected("vae", "text_encoder", "image_encoder"))
    assert start.summary()[-1] == "fresh: projector, unet"


def test_values_are_checked_as_they_are_read(tmp_path, release_file):
    name = UNET + "time_embed.0.bias"
    path = write(
        tmp_path / "t2v.safetensors", text_to_video(**{name: np.full(128, np.nan, np.float32)})
    )
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        begin(videocrafter=path, towers=release_file)
