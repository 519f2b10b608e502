"""Samples during training: those that the model makes elsewhere, of clips or of given images."""

import io
from pathlib import Path

import golden_weights
import jax
import numpy as np
import pytest
import storage
import tiny
from ml_collections import ConfigDict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling.sampler import Sampler
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.training import samples
from dynamicrafter_jax.training.metrics import MetricWriter
from dynamicrafter_jax.training.samples import Samples, open_subjects
from dynamicrafter_jax.training.settings import TrainSettings

QUICK = {"steps": 2, "fps": 24}
PROMPTS = ["a cat", "fireworks display", ""]


def picture(seed: int) -> np.ndarray:
    values = golden_weights.picture(seed, 16, 24)
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


@pytest.fixture
def config() -> ConfigDict:
    config = tiny.micro().config.copy_and_resolve_references()
    config.sampling.update(QUICK)
    return config


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, ...]:
    for seed, name in enumerate("abc"):
        media.write_png(tmp_path / f"{name}.png", picture(seed))
    return tuple(str(tmp_path / f"{name}.png") for name in "abc")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sampler for all tests on one device, so that it compiles once."""

    def sampler(config: ConfigDict, mesh: jax.sharding.Mesh) -> Sampler:
        return tiny.micro().sampler if mesh.size == 1 else Sampler(config, mesh)

    monkeypatch.setattr(samples, "Sampler", sampler)


def opened(config: ConfigDict, writer: MetricWriter, workdir: Path, devices: int = 1) -> Samples:
    settings = settings_of(TrainSettings, "train", config.train)
    subjects = open_subjects(config, settings, sharding.make_mesh(devices))
    assert subjects is not None
    return Samples(subjects, workdir=workdir, writer=writer)


def test_samples_are_the_model_s_and_are_written(tmp_path: Path, config, images):
    model = tiny.micro()
    config.train.update(sample_images=images, sample_prompts=tuple(PROMPTS))
    workdir = tmp_path / "run"
    with MetricWriter(workdir) as writer:
        sample = opened(config, writer, workdir)
        assert sample.names == ("0_a", "1_b", "2_c")
        videos = sample.sample(model.params)
        for i in range(3):
            alone = model(picture(i), PROMPTS[i], first_index=i, **QUICK)
            np.testing.assert_array_equal(videos[i], alone)
        sample.observe({"video": videos[::-1], "weight": np.ones(3, np.float32)})
        # Where frames are left out, what is between two of them is no measure.
        few = {"video": videos[:, ::2] // 2, "weight": np.ones(3, np.float32)}
        sample.observe(few | {"places": np.array([[0, 2]] * 3, np.int32)})
        found = sample(1000, model.params)
        sample(2000, jax.tree.map(lambda leaf: leaf * 1.1, model.params))
    assert found["motion/ratio"] == pytest.approx(1)

    for step, name in ((1000, "0_a"), (2000, "2_c")):
        video, fps = media.read_video(workdir / "samples" / str(step) / f"{name}.mp4")
        assert video.shape == (3, 16, 24, 3) and fps == config.sampling.video_fps
    shown = EventAccumulator(str(workdir)).Reload()
    previews = shown.Images("samples/0_a")
    assert [event.step for event in previews] == [1000, 2000]
    frames = [
        np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"), float)
        for event in previews
    ]
    assert np.abs(frames[0] - videos[0, 0]).mean() < 12  # 256 colours
    assert np.abs(frames[1] - frames[0]).max() > 0


def test_parameters_are_used_where_they_are_and_nothing_compiles_again(
    tmp_path: Path, config, images
):
    model = tiny.micro()
    config.train.update(sample_images=images, sample_prompts=tuple(PROMPTS))
    sample = opened(config, MetricWriter(tmp_path, enabled=False), tmp_path / "run")
    sampler = model.sampler
    programs = (sampler._encode, sampler._start, sampler._denoise, sampler._decode)
    sample(0, model.params)
    compiled = [len(program._compiled) for program in programs]
    before = {id(array) for array in jax.live_arrays()}
    changed = jax.tree.map(lambda leaf: leaf * 2, model.params)
    assert sample(1, changed) == {}
    own = {id(leaf) for leaf in jax.tree.leaves(changed)}
    left = [array for array in jax.live_arrays() if id(array) not in before | own]
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(changed))
    assert sum(array.nbytes for array in left) < largest
    assert [len(program._compiled) for program in programs] == compiled
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_samples_are_the_same_split_over_devices(tmp_path: Path, config, images):
    params = tiny.micro().params
    config.train.update(sample_images=images, sample_prompts=tuple(PROMPTS))
    writer = MetricWriter(tmp_path, enabled=False)
    alone = opened(config, writer, tmp_path).sample(params).astype(int)
    whole = sharding.replicate(params, sharding.make_mesh(2))
    split = opened(config, writer, tmp_path, devices=2).sample(whole)
    assert np.abs(split - alone).max() <= 1


def videos_folder(folder: Path) -> str:
    """Five videos of which one is broken, each with its own caption."""
    rng = np.random.default_rng(0)
    for i in range(5):
        video = np.repeat(rng.integers(0, 240, (1, 2, 3, 3), np.uint8), 12, axis=0)
        video = video.repeat(16, axis=1).repeat(16, axis=2)
        media.write_video(
            folder / f"{i}.mp4", video + np.arange(12, dtype=np.uint8)[:, None, None, None], 8
        )
        (folder / f"{i}.txt").write_text(f"video {i}")
    (folder / "2.mp4").write_bytes(b"broken")
    return str(folder)


@pytest.mark.parametrize("concat", ["frame", "ends"])
def test_clips_are_made_again_where_no_images_are_given(tmp_path: Path, config, concat):
    config.data.source = videos_folder(tmp_path / "videos")
    config.data.random_frame = concat == "frame"
    config.train.update(sample_clips=4, concat=concat)
    sample = opened(config, MetricWriter(tmp_path, enabled=False), tmp_path)
    assert sample.names == ("clip_0", "clip_1", "clip_2", "clip_3")
    inputs = sample._inputs
    captions = tokenize([f"video {i}" for i in range(5)])
    chosen = [np.flatnonzero((captions == row).all(1))[0] for row in inputs.ids]
    assert 2 not in chosen and len(set(chosen)) == 4
    assert (inputs.last is not None) == (concat == "ends") and not inputs.loop
    for i, video in enumerate(chosen):
        frames, _ = media.read_video(tmp_path / "videos" / f"{video}.mp4")
        levels = frames.mean((1, 2, 3))
        level = (inputs.first[i].mean() + 1) * 127.5
        assert levels[0] - 1.5 < level < levels[-1] + 1.5
        if inputs.last is not None:
            assert (inputs.last[i].mean() + 1) * 127.5 > level + 1


@pytest.mark.parametrize("concat", ["frame", "ends"])
def test_a_clip_is_made_again_from_its_conditioning_image(tmp_path, config, monkeypatch, concat):
    def example(index: int) -> dict[str, np.ndarray]:
        frame = (index + 1) % 3
        video = np.arange(3, dtype=np.uint8)[:, None, None, None] + np.uint8(10 * index)
        return {
            "weight": np.asarray(1, np.float32),
            "video": np.broadcast_to(video, (3, 16, 24, 3)),
            "frame": np.asarray(frame, np.int32),
            "ids": np.full(77, index, np.int32),
        }

    monkeypatch.setattr(samples, "open_examples", lambda *args, **options: example)
    config.data.source = "here"
    config.train.update(sample_clips=3, concat=concat)
    inputs = opened(config, MetricWriter(tmp_path, enabled=False), tmp_path)._inputs
    levels = np.round((inputs.first.mean((1, 2, 3)) + 1) * 127.5)
    assert levels.tolist() == [1, 12, 20] and inputs.ids[:, 0].tolist() == [0, 1, 2]
    assert (inputs.last is None) == (concat == "frame")
    if inputs.last is not None:
        assert np.round((inputs.last.mean((1, 2, 3)) + 1) * 127.5).tolist() == [2, 12, 22]


def test_a_held_out_clip_is_preferred(tmp_path: Path, config):
    config.data.source = str(tmp_path / "nowhere")
    config.data.validation = videos_folder(tmp_path / "videos")
    sample = opened(config, MetricWriter(tmp_path, enabled=False), tmp_path)
    assert len(sample.names) == config.train.sample_clips


def test_images_loop_in_a_model_that_joins_two(tmp_path: Path, config, images):
    config.train.update(sample_images=images, sample_prompts=tuple(PROMPTS), concat="ends")
    sample = opened(config, MetricWriter(tmp_path, enabled=False), tmp_path)
    assert sample._inputs.loop


def test_no_samples_where_none_are_wanted(tmp_path: Path, config):
    config.train.sample_every = 0
    settings = settings_of(TrainSettings, "train", config.train)
    assert open_subjects(config, settings, sharding.make_mesh(1)) is None


class CachedExamples:
    """Samples as a cache of towers' outputs gives them."""

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        return {"weight": np.asarray(1, np.float32), "vision": np.zeros((2, 3), np.float32)}


def test_what_cannot_be_sampled_is_said_at_once(tmp_path: Path, config, images, monkeypatch):
    writer = MetricWriter(tmp_path, enabled=False)
    config.data.source = videos_folder(tmp_path / "videos")
    for broken in (tmp_path / "videos").glob("*.mp4"):
        broken.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the first 16 clips of .*videos can be read"):
        opened(config, writer, tmp_path)
    monkeypatch.setattr(samples, "open_examples", lambda *args, **options: CachedExamples())
    with pytest.raises(
        UserError, match=r"holds no pictures or prompts .*: give train\.sample_images"
    ):
        opened(config, writer, tmp_path)
    config.train.update(sample_images=("nowhere.png",), sample_prompts=("",))
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        opened(config, writer, tmp_path)
    config.train.sample_images = images[:1]
    (tmp_path / "run").write_bytes(b"")
    enabled = MetricWriter(tmp_path)
    with pytest.raises(UserError, match=r"can't be written"):
        opened(config, enabled, tmp_path / "run")


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, config, images):
    config.train.update(sample_images=images[:1], sample_prompts=("",))
    sample = opened(config, MetricWriter(tmp_path / "run"), tmp_path / "run")
    with (
        storage.full_disk(100),
        pytest.warns(UserWarning, match=r"can't be written: .*continues without this video"),
    ):
        found = sample(10, tiny.micro().params)
    assert found["motion/samples"] > 0 and not list(tmp_path.rglob("*.mp4"))
