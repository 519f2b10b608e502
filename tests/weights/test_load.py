import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from release_files import FROZEN, micro, micro_tensors, write

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights import converted, load, names
from dynamicrafter_jax.weights.release import release_tensors

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def release_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("release") / "model.safetensors", micro_tensors())


def micro_in(param_dtype):
    config = micro()
    config.precision.param_dtype = param_dtype
    return config


def assert_same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and np.array_equal(a, b)


def micro_params(*dtypes):
    """The parameters of the release file, taken through some types."""
    values = micro_tensors()
    params = {}
    for name, tensor in release_tensors(load.abstract_params(micro())).items():
        params[tensor.path] = tensor.from_release(values[name])
        for dtype in dtypes:
            params[tensor.path] = params[tensor.path].astype(jnp.dtype(dtype))
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params))


def refusal(path, config=None, **options):
    with pytest.raises(UserError) as caught:
        load.load_release(path, config or micro(), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_parameter_is_filled(release_file):
    params = load.load_release(release_file, micro())
    assert_same(params, micro_params())
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    boxes = load.abstract_params(micro())
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, nn.meta.unbox(boxes))


def test_layouts_are_ours(release_file):
    params = load.load_release(release_file, micro())
    theirs = micro_tensors()
    kernel = params["unet"]["input_0"]["kernel"]
    assert np.array_equal(kernel, theirs[UNET + "input_blocks.0.0.weight"].transpose(2, 3, 1, 0))
    kernel = params["unet"]["time_embed"]["in"]["kernel"]
    assert np.array_equal(kernel, theirs[UNET + "time_embed.0.weight"].T)
    query = params["unet"]["input_1"]["spatial"]["attn2"]["query"]["kernel"]
    flat = theirs[UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"]
    assert np.array_equal(query, flat.T.reshape(32, 2, 16))  # heads are contiguous in the release
    along_time = params["unet"]["input_1"]["res"]["temporal_conv"]["conv1"]["kernel"]
    flat = theirs[UNET + "input_blocks.1.0.temopral_conv.conv1.2.weight"]
    assert np.array_equal(along_time, flat[..., 0, 0].transpose(2, 1, 0))
    latents = params["projector"]["latents"]
    assert np.array_equal(latents, theirs["image_proj_model.latents"][0])


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_types_are_changed(tmp_path, stored, wanted):
    theirs = {name: v.astype(jnp.dtype(stored)) for name, v in micro_tensors().items()}
    path = write(tmp_path / "model.safetensors", theirs)
    assert_same(load.load_release(path, micro_in(wanted)), micro_params(stored, wanted))


def test_older_names_are_known(tmp_path):
    theirs = {
        k.replace("fps_embedding", "framestride_embed"): v for k, v in micro_tensors().items()
    }
    assert UNET + "framestride_embed.0.weight" in theirs
    path = write(tmp_path / "model.safetensors", theirs)
    assert_same(load.load_release(path, micro()), micro_params())


def test_older_and_newer_names_together_are_refused(tmp_path):
    theirs = micro_tensors()
    theirs[UNET + "framestride_embed.0.bias"] = theirs[UNET + "fps_embedding.0.bias"]
    message = refusal(write(tmp_path / "model.safetensors", theirs))
    assert "fps_embedding.0.bias twice" in message


@pytest.mark.parametrize("kind", ["lightning", "deepspeed", "plain"])
def test_pytorch_checkpoints_are_read(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="PyTorch checkpoints need the extra [convert]")
    theirs = {name: torch.from_numpy(values) for name, values in micro_tensors().items()}
    theirs |= {"cond_stage_model.model.attn_mask": torch.zeros(77, 77)}  # a constant: dropped
    prefixed = {f"_forward_module.{name}": tensor for name, tensor in theirs.items()}
    content, name = {
        "lightning": ({"state_dict": theirs, "global_step": 1}, "model.ckpt"),
        "deepspeed": ({"module": prefixed}, "mp_rank_00_model_states.pt"),
        "plain": (theirs, "model.pth"),
    }[kind]
    torch.save(content, tmp_path / name)
    assert_same(load.load_release(tmp_path / name, micro()), micro_params())


def test_what_does_not_fit_is_listed(tmp_path):
    theirs = micro_tensors(without=(UNET + "out.2.bias",))
    theirs[UNET + "out.2.weight"] = np.zeros((4, 32, 1, 1), np.float32)
    theirs["model_ema.decay"] = np.zeros((), np.float32)
    message = refusal(write(tmp_path / "model.safetensors", theirs))
    assert str(tmp_path / "model.safetensors") in message and "the config micro" in message
    assert f"1 missing: {UNET}out.2.bias;" in message
    assert "1 unexpected: model_ema.decay ();" in message
    assert f"1 misshapen: {UNET}out.2.weight (4, 32, 1, 1) instead of (4, 32, 3, 3)" in message


def other_micro():
    """A config with parameters that the release file does not have."""
    config = micro()
    config.unet.image_cross_attention_scale_learnable = True
    return config


def test_the_file_of_another_model_is_refused(tmp_path, release_file):
    message = refusal(release_file, other_micro())
    assert " missing: model.diffusion_model.input_blocks.1.1" in message
    theirs = {name: values[None] for name, values in micro_tensors().items()}
    message = refusal(write(tmp_path / "model.safetensors", theirs))
    assert "misshapen: " in message and "more" in message and len(message) < 2000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [UNET + "out.2.weight", "first_stage_model.quant_conv.bias"])
def test_values_that_are_not_finite_are_refused(tmp_path, name, value):
    theirs = micro_tensors()
    theirs[name] = theirs[name].copy()
    theirs[name].flat[3] = value
    path = write(tmp_path / "model.safetensors", theirs)
    assert f"{name} holds NaN" in refusal(path)
    assert f"{name} holds NaN" in refusal(path, micro_in("bfloat16"))


def test_values_that_are_no_weights_are_refused(tmp_path):
    theirs = micro_tensors() | {UNET + "out.2.bias": np.arange(4)}
    message = refusal(write(tmp_path / "model.safetensors", theirs))
    assert f"{UNET}out.2.bias holds int64" in message


def test_the_schedule_tells_releases_apart(tmp_path, golden):
    with np.load(golden / "schedule.npz") as tables:
        alpha_bar = tables["alphas_cumprod_512"]
        scale_512, scale_1024 = (
            np.concatenate([tables[name], np.full(400, tables[name][-1], np.float32)])
            for name in ("scale_arr_512", "scale_arr_1024")
        )

    def with_buffers(**buffers):
        return write(tmp_path / "model.safetensors", micro_tensors() | buffers)

    for dtype in (np.float32, np.float16, jnp.bfloat16):
        right = {"alphas_cumprod": alpha_bar.astype(dtype), "scale_arr": scale_512.astype(dtype)}
        assert_same(load.load_release(with_buffers(**right), micro()), micro_params())
    for wrong in ({"scale_arr": scale_1024}, {"alphas_cumprod": alpha_bar[:500]}):
        message = refusal(with_buffers(**wrong))
        assert "another noise schedule" in message and next(iter(wrong)) in message
    config = micro()
    config.diffusion.use_dynamic_rescale = False
    assert "its scale_arr differs" in refusal(with_buffers(scale_arr=scale_512), config)


def test_it_must_be_said_where_towers_come_from(tmp_path):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    message = refusal(path)
    assert f"{path} has no vae and no text_encoder and no image_encoder: set towers to" in message
    path = write(tmp_path / "no_vae.safetensors", micro_tensors(without=FROZEN[:1]))
    assert f"{path} has no vae: set towers to" in refusal(path)


@pytest.mark.parametrize("absent", [FROZEN, FROZEN[:1], FROZEN[1:]], ids=len)
def test_towers_come_from_another_file(tmp_path, release_file, absent):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=absent))
    assert_same(load.load_release(path, micro(), towers=release_file), micro_params())
    with load.open_release(path, micro(), towers=release_file) as release:
        assert release.sources == (path, release_file)
        assert len(release.carried) == 23


def test_towers_may_come_from_a_file_of_towers_in_another_type(tmp_path):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    halves = micro_tensors(without=(UNET, "image_proj_model."))
    halves = {name: values.astype(np.float16) for name, values in halves.items()}
    towers = write(tmp_path / "towers.safetensors", halves)
    params = load.load_release(path, micro(), towers=towers)
    expected = micro_params()
    for section in ("vae", "text_encoder", "image_encoder"):
        expected[section] = micro_params("float16", "float32")[section]
    assert_same(params, expected)


def test_towers_must_be_whole(tmp_path, release_file):
    lacking = ("first_stage_model.quant_conv.bias",)
    path = write(tmp_path / "part.safetensors", micro_tensors(without=lacking + FROZEN[1:]))
    assert f"1 missing: {lacking[0]}" in refusal(path, towers=release_file)
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    towers = write(tmp_path / "towers.safetensors", micro_tensors(without=lacking))
    message = refusal(path, towers=towers)
    assert str(towers) in message and f"1 missing: {lacking[0]}" in message
    assert "does not exist" in refusal(path, towers=tmp_path / "absent.safetensors")


@pytest.mark.parametrize("trained", ["image_proj_model.", UNET])
def test_trained_networks_are_no_towers(tmp_path, release_file, trained):
    path = write(tmp_path / "model.safetensors", micro_tensors(without=(trained,)))
    assert f"missing: {trained}" in refusal(path, towers=release_file)


def test_towers_that_are_not_needed_are_not_read(tmp_path, release_file):
    absent = tmp_path / "absent.safetensors"
    with (
        pytest.warns(UserWarning, match="is not read"),
        load.open_release(release_file, micro(), towers=absent) as release,
    ):
        assert release.sources == (release_file,)


@pytest.fixture(scope="module")
def converted_model(tmp_path_factory):
    """A converted model, without what is carried."""
    directory = tmp_path_factory.mktemp("converted") / "model"
    for section, params in micro_params().items():
        converted.save_tree(converted.section_path(directory, section), params)
    converted.write_description(directory, micro(), [])
    return directory


def test_towers_come_from_a_converted_model(tmp_path, converted_model):
    path = write(tmp_path / "unet.safetensors", micro_tensors(without=FROZEN))
    params = load.load_release(path, micro_in("bfloat16"), towers=converted_model)
    assert_same(params, micro_params("bfloat16"))


def test_a_directory_knows_its_config(converted_model):
    config, params = load.load_pretrained(converted_model)
    assert config == micro()
    assert_same(params, micro_params())


def test_a_config_replaces_that_of_a_directory(converted_model):
    # Flags lock their configs, which must not look like another schedule.
    config, params = load.load_pretrained(converted_model, config=micro_in("bfloat16").lock())
    assert config.precision.param_dtype == "bfloat16"
    assert_same(params, micro_params("bfloat16"))
    with pytest.raises(UserError, match=r"do not fit the config: \d+ missing: input_1/spatial"):
        load.load_pretrained(converted_model, config=other_micro())


def test_another_schedule_than_that_of_a_directory_is_pointed_out(converted_model):
    config = micro()
    config.diffusion.base_scale = 0.3
    with pytest.warns(UserWarning, match="another noise schedule"):
        load.load_pretrained(converted_model, config=config)


def test_a_model_that_is_not_there_is_missed_before_its_config(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: check the path"):
        load.load_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere does not exist: check the path"):
        names.config_for(tmp_path / "nowhere", None)


def test_a_file_needs_a_config(release_file):
    with pytest.raises(UserError, match="needs a config, such as config='i2v_1024'"):
        load.load_pretrained(release_file)
    config, params = load.load_pretrained(release_file, config=micro())
    assert config == micro()
    assert_same(params, micro_params())


def test_configs_that_describe_no_model(release_file):
    message = refusal(release_file, micro_in("float16"))
    assert "precision.param_dtype is 'float16': choose float32 or bfloat16" in message
    config = micro()
    config.unet.colour = "red"
    assert "colour" in refusal(release_file, config)
    config = micro()
    del config["projector"]
    assert "projector" in refusal(release_file, config)
