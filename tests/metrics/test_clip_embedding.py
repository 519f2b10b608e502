"""The joint embedding against the `open_clip` package, by the same weights and pictures."""

import clip_files
import dreamsim_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.clip_embedding import (
    ClipEmbedding,
    describe_clip,
    frame_vectors,
    load_clip_embedding,
    preprocess,
    text_vectors,
)
from dynamicrafter_jax.metrics.resizing import resize
from dynamicrafter_jax.models.layers import abstract_params

TARGET = 1e-5

MODEL = clip_files.model()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    safetensors.numpy.save_file(clip_files.tensors(), path)
    return path


@pytest.fixture(scope="module")
def params(file):
    return load_clip_embedding(file, MODEL)


def pictures():
    return [jnp.asarray(dreamsim_files.picture(*which))[None] for which in dreamsim_files.PICTURES]


def central(image):
    """The square of 224 pixels that CLIP sees."""
    _, h, w, _ = image.shape
    height, width = (224 * side // min(h, w) for side in (h, w))
    top, left = (height - 224) // 2, (width - 224) // 2
    return resize(image, height, width)[:, top : top + 224, left : left + 224]


def test_pictures_are_preprocessed_as_open_clip_does():
    golden = dreamsim_files.golden()["clip_pixels"]
    for image, theirs in zip(pictures(), golden, strict=True):
        ours = np.asarray(preprocess(image))[0, ::16, ::16].transpose(2, 0, 1)
        assert np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize(("width", "left"), [(225, 0), (227, 2), (229, 2), (231, 4)])
def test_an_odd_number_of_pixels_is_cut_off_as_torchvision_does(width, left):
    """Half of it is rounded to an even number."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, width, 3)).astype(np.uint8)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    for turned in (False, True):
        ours = np.asarray(preprocess(jnp.asarray(image.swapaxes(1, 2) if turned else image)))
        wanted = (image[:, :, left : left + 224] / 255 - mean) / deviation
        np.testing.assert_allclose(
            ours.swapaxes(1, 2) if turned else ours, wanted, rtol=0, atol=1e-5
        )


def test_vectors_of_pictures(params, relative_error):
    # What is cut off makes no difference, and equal sizes take one call.
    images = jnp.stack([central(image) for image in pictures()])
    ours = frame_vectors(params, images, MODEL)[:, 0]
    assert relative_error(ours, dreamsim_files.golden()["clip_images"]) < TARGET


def test_vectors_of_texts(params, relative_error):
    ours = text_vectors(params, jnp.asarray(clip_files.token_ids()), MODEL)
    assert relative_error(ours, dreamsim_files.golden()["clip_texts"]) < TARGET


def test_vectors_of_videos_are_those_of_frames(params):
    frames = jnp.concatenate([central(image) for image in pictures()])
    video = frame_vectors(params, frames.reshape(2, 2, 224, 224, 3), MODEL)
    alone = frame_vectors(params, frames[:, None], MODEL)
    assert np.abs(video.reshape(4, -1) - alone[:, 0]).max() < 1e-5


def test_the_default_is_vit_h_14():
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    images = jax.ShapeDtypeStruct((1, 300, 200, 3), jnp.uint8)
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract_params(ClipEmbedding(), ids, images))]
    assert sum(sizes) == 986_109_440  # one more in the file, the scale of the logits


def test_other_files_are_refused(tmp_path, file):
    with pytest.raises(UserError, match=r"does not exist: .*CLIP-ViT-H-14-laion2B-s32B-b79K"):
        load_clip_embedding(tmp_path / "nowhere.safetensors", MODEL)
    with pytest.raises(UserError, match=r"is not this CLIP: .*misshapen"):
        load_clip_embedding(file)
    tensors = clip_files.tensors()
    del tensors["visual.proj"]
    safetensors.numpy.save_file(tensors, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"1 missing: visual\.proj"):
        load_clip_embedding(tmp_path / "clip.safetensors", MODEL)
    tensors["visual.proj"] = np.full((64, clip_files.EMBEDDING), np.nan, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"visual\.proj holds NaN"):
        load_clip_embedding(tmp_path / "clip.safetensors", MODEL)


def test_vectors_are_described_by_their_weights(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    assert describe_clip(tmp_path / "weights")["weights_sha256"].startswith("ba7816bf8f01cfea")
