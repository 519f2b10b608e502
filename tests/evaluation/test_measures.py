"""Measures get the frames or the image before them, each what it needs."""

import dataclasses

import clip_files
import evaluation_sets
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dynamicrafter_jax import sharding
from dynamicrafter_jax.data.clips import prompt_ids
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import measures
from dynamicrafter_jax.evaluation.protocol import load_protocol
from dynamicrafter_jax.metrics import frames
from dynamicrafter_jax.metrics.clip_embedding import (
    frame_vectors,
    load_clip_embedding,
    text_vectors,
)

SETTINGS = load_protocol("folders").measures


def seen(count=3):
    clips = [evaluation_sets.clip(i) for i in range(count)]
    return [np.concatenate([clip[5:6], clip]) for clip in clips]


def run(measure, clips):
    found = list(measure.run((str(i), clip) for i, clip in enumerate(clips)))
    return np.concatenate([values for _, values in found])


def test_i3d_sees_no_image(monkeypatch, tmp_path):
    """With a mean in the network's place, which only shows what it is given."""
    asked = []

    def network(params, clips, half_pixel_centers):
        asked.append(half_pixel_centers)
        return clips.astype(jnp.float32).mean((2, 3, 4))[:, :2] * params["scale"]

    monkeypatch.setattr(measures, "i3d_features", network)
    monkeypatch.setattr(measures, "load_i3d", lambda path: {"scale": jnp.ones(())})
    file = tmp_path / "i3d.pt"
    file.write_bytes(b"weights")
    settings = dataclasses.replace(SETTINGS, half_pixel_centers=False)
    measure = measures.i3d_measure(file, settings, sharding.make_mesh(data=2))
    expected = [clip[1:3].mean((1, 2, 3)) for clip in seen()]
    assert np.allclose(run(measure, seen()), expected)
    assert asked == [False] and "TensorFlow 1" in measure.settings["preprocessing"]
    wrong = dataclasses.replace(SETTINGS, i3d_sha256="00")
    with pytest.raises(UserError, match=r"i3d\.pt is not the file .* instead of 00"):
        measures.i3d_measure(file, wrong, sharding.make_mesh())


def test_frames_compare_with_the_image():
    found = run(measures.frames_measure(sharding.make_mesh()), seen())
    columns = dict(zip(frames.COLUMNS, found.T, strict=True))
    error = [np.square(clip[0].astype(float) - clip[1]).mean() for clip in seen()]
    assert np.allclose(columns["first_frame_psnr"], 10 * np.log10(255**2 / np.asarray(error)))
    motion = [np.abs(np.diff(clip[1:].astype(float), axis=0)).mean() / 255 for clip in seen()]
    assert np.allclose(columns["motion_degree"], motion)
    # Equal pictures have a number too, so that there is a mean.
    (still,) = run(
        measures.frames_measure(sharding.make_mesh()), [np.repeat(seen(1)[0][:1], 17, 0)]
    )
    assert np.allclose(still, [110, 1, 0])
    blind = measures.frames_measure(sharding.make_mesh(), has_images=False)
    assert set(numbers := blind.numbers(run(blind, seen()), [""] * 3)) == {"motion_degree"}
    assert np.allclose(numbers["motion_degree"], motion)


def test_clip_compares_frames_with_each_other_and_with_prompts(tmp_path):
    """Against the vectors themselves, one clip and one prompt after another."""
    file = tmp_path / "open_clip_model.safetensors"
    safetensors.numpy.save_file(clip_files.tensors(), file)
    model = clip_files.model()
    measure = measures.clip_measure(file, SETTINGS, sharding.make_mesh(data=2), 2, model)
    clips, prompts = seen(), ["a cat", "a dog walks", "a cat"]
    rows = run(measure, clips)
    numbers = measure.numbers(rows, prompts)
    assert set(numbers) == {"frame_consistency", "text_similarity"}
    params = load_clip_embedding(file, model)
    for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        frame = np.asarray(frame_vectors(params, jnp.asarray(clip[None, 1:]), model)[0], np.float64)
        ids = jnp.asarray(prompt_ids(prompt, 77))[None]
        text = np.asarray(text_vectors(params, ids, model)[0], np.float64)
        frame, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (frame, text))
        assert numbers["frame_consistency"][i] == pytest.approx(
            (frame[1:] * frame[:-1]).sum(-1).mean(), abs=1e-5
        )
        assert numbers["text_similarity"][i] == pytest.approx((frame @ text).mean(), abs=1e-5)
    assert numbers["text_similarity"][0] != numbers["text_similarity"][1]
    # What has no prompt is like none.
    assert set(measure.numbers(rows, ["a cat", "", "a cat"])) == {"frame_consistency"}
    wrong = dataclasses.replace(SETTINGS, clip_sha256="00")
    with pytest.raises(UserError, match="CLIP weights that the protocol names"):
        measures.clip_measure(file, wrong, sharding.make_mesh(), model=model)


def test_missing_weights_say_which(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt does not exist: FVD and KVD need"):
        measures.i3d_measure(tmp_path / "none.pt", SETTINGS, sharding.make_mesh())
    with pytest.raises(UserError, match=r"none does not exist: similarity to texts needs"):
        measures.clip_measure(tmp_path / "none", SETTINGS, sharding.make_mesh())
    with pytest.raises(UserError, match=r"does not exist"):
        measures.dreamsim_measure(tmp_path / "none", SETTINGS, sharding.make_mesh())
