"""CLIP and VAE files, made of the same weights as a release file under names written by hand.

These names were held to those of diffusers, open_clip and transformers themselves; the last is
an oracle here too, where it has PyTorch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from release_files import FROZEN, write
from start_files import (
    TEXT,
    UNET,
    VAE,
    VISION,
    assert_same,
    begin,
    begin_hub,
    expected,
    refusal,
    release,
    small,
)

from dynamicrafter_jax.config import networks_of

TOWERS = ("text_encoder", "image_encoder")

# What replaces the beginning of names; the longest that fits counts.
OPEN_CLIP = {TEXT: "", VISION: "visual."}
DIFFUSERS = {
    f"{VAE}encoder.conv_in.": "encoder.conv_in.",
    f"{VAE}encoder.down.0.block.0.": "encoder.down_blocks.0.resnets.0.",
    f"{VAE}encoder.down.0.downsample.": "encoder.down_blocks.0.downsamplers.0.",
    f"{VAE}encoder.down.1.block.0.": "encoder.down_blocks.1.resnets.0.",
    f"{VAE}encoder.down.1.downsample.": "encoder.down_blocks.1.downsamplers.0.",
    f"{VAE}encoder.down.2.block.0.": "encoder.down_blocks.2.resnets.0.",
    f"{VAE}encoder.down.2.block.0.nin_": "encoder.down_blocks.2.resnets.0.conv_",
    f"{VAE}encoder.mid.block_1.": "encoder.mid_block.resnets.0.",
    f"{VAE}encoder.mid.attn_1.norm.": "encoder.mid_block.attentions.0.group_norm.",
    f"{VAE}encoder.mid.attn_1.q.": "encoder.mid_block.attentions.0.to_q.",
    f"{VAE}encoder.mid.attn_1.k.": "encoder.mid_block.attentions.0.to_k.",
    f"{VAE}encoder.mid.attn_1.v.": "encoder.mid_block.attentions.0.to_v.",
    f"{VAE}encoder.mid.attn_1.proj_out.": "encoder.mid_block.attentions.0.to_out.0.",
    f"{VAE}encoder.mid.block_2.": "encoder.mid_block.resnets.1.",
    f"{VAE}encoder.norm_out.": "encoder.conv_norm_out.",
    f"{VAE}encoder.conv_out.": "encoder.conv_out.",
    f"{VAE}decoder.conv_in.": "decoder.conv_in.",
    f"{VAE}decoder.mid.block_1.": "decoder.mid_block.resnets.0.",
    f"{VAE}decoder.mid.attn_1.norm.": "decoder.mid_block.attentions.0.group_norm.",
    f"{VAE}decoder.mid.attn_1.q.": "decoder.mid_block.attentions.0.to_q.",
    f"{VAE}decoder.mid.attn_1.k.": "decoder.mid_block.attentions.0.to_k.",
    f"{VAE}decoder.mid.attn_1.v.": "decoder.mid_block.attentions.0.to_v.",
    f"{VAE}decoder.mid.attn_1.proj_out.": "decoder.mid_block.attentions.0.to_out.0.",
    f"{VAE}decoder.mid.block_2.": "decoder.mid_block.resnets.1.",
    f"{VAE}decoder.up.2.block.0.": "decoder.up_blocks.0.resnets.0.",
    f"{VAE}decoder.up.2.block.1.": "decoder.up_blocks.0.resnets.1.",
    f"{VAE}decoder.up.2.upsample.": "decoder.up_blocks.0.upsamplers.0.",
    f"{VAE}decoder.up.1.block.0.": "decoder.up_blocks.1.resnets.0.",
    f"{VAE}decoder.up.1.block.0.nin_": "decoder.up_blocks.1.resnets.0.conv_",
    f"{VAE}decoder.up.1.block.1.": "decoder.up_blocks.1.resnets.1.",
    f"{VAE}decoder.up.1.upsample.": "decoder.up_blocks.1.upsamplers.0.",
    f"{VAE}decoder.up.0.block.0.": "decoder.up_blocks.2.resnets.0.",
    f"{VAE}decoder.up.0.block.1.": "decoder.up_blocks.2.resnets.1.",
    f"{VAE}decoder.norm_out.": "decoder.conv_norm_out.",
    f"{VAE}decoder.conv_out.": "decoder.conv_out.",
    f"{VAE}quant_conv.": "quant_conv.",
    f"{VAE}post_quant_conv.": "post_quant_conv.",
}
TRANSFORMERS_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.in_proj_": "self_attn.FUSED.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
TRANSFORMERS = {
    f"{TEXT}token_embedding.": "text_model.embeddings.token_embedding.",
    f"{TEXT}positional_embedding": "text_model.embeddings.position_embedding.weight",
    f"{TEXT}ln_final.": "text_model.final_layer_norm.",
    f"{TEXT}logit_scale": "logit_scale",
    f"{TEXT}text_projection": "text_projection.weight",
    f"{VISION}class_embedding": "vision_model.embeddings.class_embedding",
    f"{VISION}conv1.": "vision_model.embeddings.patch_embedding.",
    f"{VISION}positional_embedding": "vision_model.embeddings.position_embedding.weight",
    f"{VISION}ln_pre.": "vision_model.pre_layrnorm.",
    f"{VISION}ln_post.": "vision_model.post_layernorm.",
    f"{VISION}proj": "visual_projection.weight",
    **{
        f"{TEXT}transformer.resblocks.{i}.{old}": f"text_model.encoder.layers.{i}.{new}"
        for i in range(3)
        for old, new in TRANSFORMERS_BLOCK.items()
    },
    **{
        f"{VISION}transformer.resblocks.{i}.{old}": f"vision_model.encoder.layers.{i}.{new}"
        for i in range(2)
        for old, new in TRANSFORMERS_BLOCK.items()
    },
}


def rename(tensors, table):
    """Renames by a table of beginnings, which must have no row that fits nothing."""
    renamed, used = {}, set()
    for name, values in tensors.items():
        row = max((old for old in table if name.startswith(old)), key=len)
        used.add(row)
        renamed[table[row] + name.removeprefix(row)] = values
    assert used == set(table)
    return renamed


def transformers_tensors():
    """Both towers under the names of transformers: query, key and value apart."""
    theirs = {}
    for name, values in rename(release(TEXT, VISION), TRANSFORMERS).items():
        if "FUSED" in name:
            for letter, third in zip("qkv", np.split(values, 3), strict=True):
                theirs[name.replace("FUSED", f"{letter}_proj")] = third
        else:
            theirs[name] = values
    return theirs


def diffusers_tensors(*, matrices=True):
    """The VAE under the names of diffusers, attention as matrices or as 1x1 convolutions."""
    theirs = rename(release(VAE), DIFFUSERS)
    return {
        name: values[:, :, 0, 0]
        if matrices and "attentions" in name and values.ndim == 4
        else values
        for name, values in theirs.items()
    }


def kinds(start):
    return {name: source.kind for name, source in start.sources.items()}


def test_towers_of_open_clip(tmp_path):
    theirs = rename(release(TEXT, VISION), OPEN_CLIP)
    assert "transformer.resblocks.2.ln_1.bias" in theirs and "visual.proj" in theirs
    path = write(tmp_path / "open_clip_model.safetensors", theirs)
    start, ours = begin_hub(clip=path)
    assert kinds(start) == dict.fromkeys(TOWERS, "open_clip")
    assert_same(ours, expected(*TOWERS))


def test_towers_of_transformers(tmp_path):
    theirs = transformers_tensors()
    assert "vision_model.encoder.layers.1.self_attn.k_proj.bias" in theirs
    ids = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    path = write(tmp_path / "model.safetensors", theirs | ids)
    start, ours = begin_hub(clip=path)
    assert kinds(start) == dict.fromkeys(TOWERS, "transformers")
    assert_same(ours, expected(*TOWERS))


@pytest.mark.parametrize(("mark", "tower"), [("text_", TOWERS[0]), ("vis", TOWERS[1])])
def test_one_tower_alone(tmp_path, mark, tower):
    theirs = {name: v for name, v in transformers_tensors().items() if name.startswith(mark)}
    path = write(tmp_path / "model.safetensors", theirs)
    start, ours = begin_hub(clip=path)
    assert set(start.sources) == {tower}
    assert_same(ours, expected(tower))


def test_the_last_text_block_may_be_absent(tmp_path):
    theirs = {
        n: v for n, v in transformers_tensors().items() if "text_model.encoder.layers.2" not in n
    }
    path = write(tmp_path / "model.safetensors", theirs)
    assert_same(begin_hub(clip=path)[1], expected(*TOWERS))


def test_towers_compute_what_transformers_computes(tmp_path, relative_error):
    torch = pytest.importorskip("torch", reason="transformers' models need the extra [convert]")
    from transformers import CLIPConfig, CLIPModel

    config = small()
    text = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16}
    vision = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    shared = {"intermediate_size": 64, "hidden_act": "gelu"}
    torch.manual_seed(0)
    theirs = CLIPModel(
        CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=8)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # no bias is left at zero, and no scale at one
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    start, ours = begin_hub(clip=tmp_path / "pytorch_model.bin")
    assert kinds(start) == dict.fromkeys(TOWERS, "transformers")

    random = np.random.default_rng(0)
    ids = random.integers(0, 49408, (2, 77)).astype(np.int32)
    image = random.standard_normal((2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        ids_there = torch.from_numpy(ids.astype(np.int64))
        states = theirs.text_model(ids_there, output_hidden_states=True).hidden_states
        text_states = theirs.text_model.final_layer_norm(states[-2])
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        tokens = theirs.vision_model(pixels).last_hidden_state
    run = jax.jit(networks_of(config).apply, static_argnums=0)
    params = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, ours), sep="/")
    ours_text = run("text_encoder", params, jnp.asarray(ids))
    assert relative_error(ours_text, text_states) < 1e-5
    ours_tokens = run("image_encoder", params, jnp.asarray(image))
    assert relative_error(ours_tokens, tokens) < 1e-5


def test_clip_must_be_whole(tmp_path):
    def refused(theirs):
        return refusal(clip=write(tmp_path / "model.safetensors", theirs))

    theirs = transformers_tensors()
    lost = "text_model.encoder.layers.0.self_attn.v_proj.bias"
    message = refused({name: v for name, v in theirs.items() if name != lost})
    assert f"model.safetensors does not fit the config small: 1 missing: {lost}" in message
    assert "1 unexpected: text_model.x (2,)" in refused(theirs | {"text_model.x": np.ones(2)})
    message = refused(theirs | {lost: np.ones(15, np.float32)})
    assert f"1 misshapen: {lost} (15,) instead of (16,)" in message
    deeper = {"text_model.encoder.layers.3.mlp.fc1.bias": np.ones(64, np.float32)}
    assert "1 unexpected: text_model.encoder.layers.3" in refused(theirs | deeper)
    message = refused({"vit.embeddings.cls_token": np.ones((1, 1, 16), np.float32)})
    assert (
        "has names of no known format, such as vit.embeddings.cls_token: give a file of" in message
    )
    assert "open_clip (transformer.resblocks.*, visual.*) or transformers" in message


@pytest.mark.parametrize("matrices", [True, False])
def test_the_vae_of_diffusers(tmp_path, matrices):
    theirs = diffusers_tensors(matrices=matrices)
    path = write(tmp_path / "diffusion_pytorch_model.safetensors", theirs)
    start, ours = begin_hub(vae=path)
    assert kinds(start) == {"vae": "diffusers"}
    assert_same(ours, expected("vae"))


def test_the_vae_of_older_diffusers(tmp_path):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    theirs = {}
    for name, values in diffusers_tensors().items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        theirs[name] = values
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in theirs
    path = write(tmp_path / "vae.safetensors", theirs)
    assert_same(begin_hub(vae=path)[1], expected("vae"))


def test_the_vae_of_ldm(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch checkpoints need the extra [convert]")
    theirs = {name.removeprefix(VAE): torch.tensor(v) for name, v in release(VAE).items()}
    assert "encoder.down.0.block.0.norm1.weight" in theirs
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in theirs.items()}
    losses = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.bias": torch.ones(3)}
    path = tmp_path / "vae.ckpt"
    torch.save({"state_dict": theirs | averages | losses, "epoch": 3}, path)
    start, ours = begin_hub(vae=path)
    assert kinds(start) == {"vae": "LDM"}
    assert_same(ours, expected("vae"))


def test_the_vae_of_a_whole_model(tmp_path):
    theirs = release(VAE, UNET) | {"cond_stage_model.transformer.x": np.ones(2, np.float32)}
    path = write(tmp_path / "stable_diffusion.safetensors", theirs)
    start, ours = begin_hub(vae=path)
    assert kinds(start) == {"vae": "LDM, of a whole model"}
    assert_same(ours, expected("vae"))


def test_a_vae_must_be_whole(tmp_path):
    def refused(theirs):
        return refusal(vae=write(tmp_path / "vae.safetensors", theirs))

    theirs = diffusers_tensors()
    lost = "decoder.up_blocks.0.upsamplers.0.conv.bias"
    assert f"1 missing: {lost}" in refused({n: v for n, v in theirs.items() if n != lost})
    assert "1 unexpected: loss.logvar" in refused(theirs | {"loss.logvar": np.ones(1)})
    message = refused(theirs | {lost: np.ones((64, 1), np.float32)})
    assert f"1 misshapen: {lost} (64, 1) instead of (64,)" in message
    twice = {"encoder.mid_block.attentions.0.query.bias": np.ones(64, np.float32)}
    assert "encoder.mid_block.attentions.0.to_q.bias twice" in refused(theirs | twice)
    assert "give a file of diffusers (encoder.down_blocks.*) or LDM" in refused({"x": np.ones(2)})


def test_hub_files_go_before_a_checkpoint(tmp_path):
    """Its own towers are not even looked at, nor missed."""
    halves = {
        name: (v if name.startswith((TEXT, VISION, VAE)) else 2 * v)
        for name, v in release().items()
    }
    clip = write(tmp_path / "clip.safetensors", rename(release(TEXT, VISION), OPEN_CLIP))
    vae = write(tmp_path / "vae.safetensors", diffusers_tensors())
    lost = VAE + "quant_conv.bias"
    part = {n: v for n, v in halves.items() if not n.startswith(FROZEN[1:]) and n != lost}
    path = write(tmp_path / "model.safetensors", part)
    start, ours = begin(checkpoint=path, clip=clip, vae=vae)
    assert start.fresh == ()
    assert kinds(start) == {
        "unet": "release",
        "projector": "release",
        "vae": "diffusers",
        **dict.fromkeys(TOWERS, "open_clip"),
    }
    assert_same(ours, expected("vae", *TOWERS))
    assert_same(ours, {name: 2 * v for name, v in expected("unet", "projector").items()})
    assert "no source has the text_encoder" in refusal(checkpoint=path, vae=vae)
