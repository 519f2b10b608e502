"""Clips straight from the sampler, with the smallest model. It is untrained: plumbing only."""

import dataclasses
import functools
import json

import evaluation_sets
import numpy as np
import pytest
import tiny
import video_files
from evaluation_sets import Counted

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import run
from dynamicrafter_jax.evaluation.clips import Problem
from dynamicrafter_jax.evaluation.zero_shot import (
    Generator,
    ThroughMp4,
    fs_of,
    settings_for,
    write_inputs,
)
from dynamicrafter_jax.media import read_picture, read_video, write_video
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.sampler import shown_frames

COUNT, FRAMES, BATCH = 5, 3, 4


def protocol(**sections):
    small = {"frames": {"count": FRAMES, "stride": 2}, "sampling": {"steps": 2, "seed": 3}}
    return evaluation_sets.protocol("demo", **small | sections)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 24 frames a second with captions beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(COUNT):
        video_files.write(folder / f"v{i}.mp4", video_files.moving(8 + i), rate=24)
        (folder / f"v{i}.txt").write_text(f"pattern {i}")
    return folder


def generate(videos, output, counted=None, *, mp4=False, **sections):
    """Runs the protocol; returns the numbers of each set and what was generated."""
    chosen, model = protocol(**sections), tiny.micro()
    reference, _ = run.open_reference(chosen, str(videos))
    generator = Generator(chosen, model.config, reference, {"weights": "made up"})
    sample = bulk.BatchSampler(model.sampler, model.params, BATCH)
    produce = functools.partial(generator.produce, sample=sample, batch_size=BATCH)
    made = {}

    def keep(items):
        for item, seen in produce(items):
            made[item.name] = seen
            yield item, seen

    sets = {"videos": run.as_they_are}
    if mp4:
        sets["mp4"] = ThroughMp4(8, "libx264", 40)
    candidates = run.Candidates(generator.items(), keep, sets)
    bench = (counted or Counted()).bench(output)
    scores = run.evaluate(chosen, bench, reference, candidates, output, {})
    return {one.set: {s.metric: s.value for s in one.scores} for one in scores}, made


def test_clips_are_those_of_the_model(videos, tmp_path):
    counted = Counted()
    found, made = generate(videos, tmp_path, counted, mp4=True)
    assert set(counted.calls.values()) == {3 * COUNT}
    assert set(made) == {f"v{i}" for i in range(COUNT)}
    model = tiny.micro()
    first = read_video(videos / "v2.mp4")[0][0]
    seen = made["v2"]
    assert seen.shape == (1 + FRAMES, 16, 24, 3)
    assert np.abs(seen[0].astype(int).mean() - first.astype(int).mean()) < 3
    reference, _ = run.open_reference(protocol(), str(videos))
    (clip,) = [clip for clip in reference.clips if clip.name == "v2"]
    clips = model.sample(
        seen[0],
        "pattern 2",
        first_index=clip.sample_index,
        steps=2,
        eta=0.0,
        guidance_scale=3.0,
        seed=3,
        fps=12.0,
    )
    expected = shown_frames(clips.video[0], loop=False)
    assert np.abs(seen[1:].astype(int) - expected.astype(int)).max() <= 1
    # What is measured is these frames, and of mp4 what is left of them.
    values = [evaluation_sets.likeness(made[f"v{i}"]).mean() for i in range(COUNT)]
    assert found["videos"]["PIC"] == pytest.approx(np.mean(values), abs=1e-6)
    write_video(tmp_path / "v.mp4", seen[1:], 8, crf=40)
    left = ThroughMp4(8, "libx264", 40)(seen)
    assert np.array_equal(left[0], seen[0])
    assert np.abs(left[1:].astype(int) - read_video(tmp_path / "v.mp4")[0]).max() <= 4
    assert found["mp4"]["FVD"] != found["videos"]["FVD"]


def test_a_run_goes_on_where_it_stopped(videos, tmp_path):
    whole, all_made = generate(videos, tmp_path / "a")
    generate(videos, tmp_path / "b", clips={"videos": 3})
    counted = Counted()
    found, made = generate(videos, tmp_path / "b", counted)
    assert len(made) == COUNT - 3 and counted.calls["i3d"] == 2 * (COUNT - 3)
    for name, seen in made.items():
        assert np.abs(seen.astype(int) - all_made[name].astype(int)).max() <= 1
    for metric, value in found["videos"].items():
        assert value == pytest.approx(whole["videos"][metric], abs=1e-3)
    assert generate(videos, tmp_path / "b") == (found, {})
    # Another setting is other clips.
    assert len(generate(videos, tmp_path / "b", sampling={"steps": 2, "seed": 4})[1]) == COUNT


def test_fs_is_what_the_model_is_told(videos):
    reference, _ = run.open_reference(protocol(), str(videos))
    clip, config = reference.clips[0], tiny.micro().config
    assert fs_of(protocol(), clip) == 12  # 24 frames a second, every other one
    assert fs_of(protocol(fs={"value": 7}), clip) == 7
    assert fs_of(protocol(fs={"meaning": "stride"}), clip) == 2
    chosen = settings_for(protocol(), config, clip)
    assert (chosen.height, chosen.width, chosen.num_frames, chosen.fps) == (16, 24, 3, 12)
    assert (chosen.steps, chosen.seed, chosen.guidance_scale) == (2, 3, 3.0)
    with pytest.raises(UserError, match="gives fs as stride, but micro takes it as fps"):
        settings_for(protocol(fs={"meaning": "stride"}), config, clip)
    with pytest.raises(UserError, match="does not say how many frames a second"):
        fs_of(protocol(), dataclasses.replace(clip, fps=None))
    with pytest.raises(UserError, match="lacks fs or sampling"):
        settings_for(evaluation_sets.protocol("folders"), config, clip)


def test_images_that_cannot_be_read_are_told(videos, tmp_path):
    for file in videos.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reference, _ = run.open_reference(protocol(), str(tmp_path))
    model = tiny.micro()
    generator = Generator(protocol(), model.config, reference, {})
    (tmp_path / "v1.mp4").write_bytes(b"broken")
    sample = bulk.BatchSampler(model.sampler, model.params, BATCH)
    made = {item.name: seen for item, seen in generator.produce(generator.items(), sample, BATCH)}
    assert set(made) == {f"v{i}" for i in range(COUNT)}
    assert [name for name, seen in made.items() if isinstance(seen, Problem)] == ["v1"]


def test_inputs_for_other_generators(videos, tmp_path):
    reference, _ = run.open_reference(protocol(), str(videos))
    write_inputs(str(tmp_path), protocol(), reference)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {row["id"]: row["prompt"] for row in rows} == {
        f"v{i}": f"pattern {i}" for i in range(COUNT)
    }
    assert {row["fps"] for row in rows} == {12.0}
    picture = read_picture(tmp_path / "v3.png")
    assert np.array_equal(picture, reference.image("v3")) and picture.shape == (16, 24, 3)
    section = tiny.micro().config.sampling
    assert len(bulk.read_requests(tmp_path / "prompts.jsonl", section)) == COUNT
