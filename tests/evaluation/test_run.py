"""Folders of videos from end to end.

Networks are stood for by functions that can be told by hand, so all of this shows the plumbing:
which clips are compared, what is kept, and what the report says. What the numbers mean is shown
where the measures are.
"""

import csv
import json

import evaluation_sets
import numpy as np
import pytest
from evaluation_sets import Counted

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import run
from dynamicrafter_jax.evaluation.datasets import open_folder, open_images
from dynamicrafter_jax.evaluation.measuring import reading
from dynamicrafter_jax.evaluation.plots import draw_plots
from dynamicrafter_jax.evaluation.reference import pair
from dynamicrafter_jax.media import write_png

COUNT = 12


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The real clips, and two sets that are further and further from them."""
    root = tmp_path_factory.mktemp("sets")
    evaluation_sets.arrays(root / "real", COUNT)
    for name, noise in (("light", 10.0), ("heavy", 40.0)):
        evaluation_sets.arrays(root / name, COUNT, noise=noise)
    (root / "still").mkdir()
    for file in (root / "real").iterdir():
        frames = np.load(file)
        np.save(root / "still" / file.name, np.repeat(frames[:1], len(frames), 0))
    return root


def score(sets, name, output, counted=None, *, images=None, reference="real", **options):
    protocol = options.pop("protocol", None) or evaluation_sets.protocol()
    skip = options.get("skip", False)
    real, problems = run.open_reference(protocol, str(sets / reference), skip=skip)
    shown = None if images is None else open_images(str(images))
    given, passed = pair(protocol, open_folder(str(sets / name)), real, shown, skip=skip)
    candidates = run.Candidates(
        given.items(), reading(given.read), {run.VIDEOS: run.as_they_are}, passed
    )
    draw = options.pop("draw", None)
    bench = (counted or Counted()).bench(output, **options)
    found = run.evaluate(
        protocol, bench, real, candidates, output, {"data": "here"}, draw=draw, problems=problems
    )
    return {one.metric: one for one in found[0].scores}


def report(output):
    return json.loads((output / "report.json").read_text())


def test_order_and_known_cases(sets, tmp_path):
    far = {name: score(sets, name, tmp_path / name) for name in ("real", "light", "heavy", "still")}
    values = {name: {k: one.value for k, one in found.items()} for name, found in far.items()}
    assert abs(values["real"]["FVD"]) < 1e-9
    for distance in ("FVD", "KVD"):
        assert values["real"][distance] < values["light"][distance] < values["heavy"][distance]
        assert values["real"][distance] < values["still"][distance]
    assert values["still"]["PIC"] == 1
    assert values["heavy"]["PIC"] < values["light"]["PIC"] < values["real"]["PIC"] < 1
    assert values["still"]["motion_degree"] == 0
    # What is said of the reference is what is measured of the same clips as a set.
    assert far["still"]["PIC"].against == pytest.approx(values["real"]["PIC"])
    for one in (one for found in far.values() for one in found.values()):
        assert one.low is not None and one.high is not None
        assert one.low <= one.value <= one.high and one.videos == COUNT


def test_means_are_those_of_all_frames(sets, tmp_path):
    found = score(sets, "light", tmp_path)
    each = []
    for i in range(COUNT):
        image = np.load(sets / "real" / f"clip_{i}.npy")[:1]
        frames = np.load(sets / "light" / f"clip_{i}.npy")
        each.append(evaluation_sets.likeness(np.concatenate([image, frames])))
    assert found["PIC"].value == pytest.approx(np.mean(each), abs=1e-6)
    framewise = report(tmp_path)["sets"]["videos"]["framewise"]["mean"]
    assert np.allclose(framewise, np.mean(each, 0), atol=1e-6)
    rows = list(csv.DictReader((tmp_path / "videos.csv").open()))
    by_name = {row["name"]: float(row["PIC"]) for row in rows}
    assert by_name["clip_7"] == pytest.approx(np.mean(each[7]), abs=1e-6)


def test_a_second_run_measures_nothing(sets, tmp_path):
    first, again = Counted(), Counted()
    found = score(sets, "light", tmp_path, first)
    assert set(first.calls.values()) == {2 * COUNT}
    assert score(sets, "light", tmp_path, again) == found
    assert again.calls == {}
    # Other settings are other features, and the old ones stay.
    other = Counted()
    score(sets, "light", tmp_path, other, version=2)
    assert set(other.calls.values()) == {2 * COUNT}
    score(sets, "light", tmp_path, again)
    assert again.calls == {}


def test_a_file_that_changed_is_measured_again(sets, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in (sets / "light").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "real").symlink_to(sets / "real")
    before = score(tmp_path, "copy", tmp_path / "out")
    np.save(tmp_path / "copy" / "clip_3.npy", np.full_like(evaluation_sets.clip(3), 255))
    counted = Counted()
    after = score(tmp_path, "copy", tmp_path / "out", counted)
    assert set(counted.calls.values()) == {1}
    assert after["PIC"].value < before["PIC"].value - 0.005


def test_finished_features_are_kept_when_a_file_breaks(sets, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in (sets / "light").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "real").symlink_to(sets / "real")
    protocol = evaluation_sets.protocol()
    real, _ = run.open_reference(protocol, str(sets / "real"))
    given, _ = pair(protocol, open_folder(str(tmp_path / "copy")), real, None)
    for name in ("clip_2", "clip_9"):  # between the look at it and its frames
        (tmp_path / "copy" / f"{name}.npy").write_bytes(b"broken")
    candidates = run.Candidates(given.items(), reading(given.read), {run.VIDEOS: run.as_they_are})
    first, second, third = Counted(), Counted(), Counted()
    wrong = r"2 videos can't be used \(features of all others are kept\): .*clip_[29]\.npy"
    with pytest.raises(UserError, match=wrong):
        run.evaluate(protocol, first.bench(tmp_path / "o"), real, candidates, tmp_path / "o", {})
    assert first.calls["i3d"] == 2 * COUNT - 2
    bench = second.bench(tmp_path / "o", skip=True)
    (found,) = run.evaluate(protocol, bench, real, candidates, tmp_path / "o", {})
    assert second.calls == {}
    assert {one.videos for one in found.scores} == {COUNT - 2}
    assert set(report(tmp_path / "o")["left_out"]) == {"clip_2", "clip_9"}
    assert report(tmp_path / "o")["reference_videos"] == COUNT - 2
    # And what could not be read is read once it is mended.
    for name in ("clip_2", "clip_9"):
        file = sets / "light" / f"{name}.npy"
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    score(tmp_path, "copy", tmp_path / "o", third)
    assert set(third.calls.values()) == {2}


def test_names_must_match(sets, tmp_path):
    (tmp_path / "real").symlink_to(sets / "real")
    evaluation_sets.arrays(tmp_path / "fewer", COUNT - 2)
    np.save(tmp_path / "fewer" / "other.npy", evaluation_sets.clip(0))
    with pytest.raises(UserError) as wrong:
        score(tmp_path, "fewer", tmp_path / "o")
    assert "fewer lacks 2 videos, clip_10, clip_11" in str(wrong.value)
    assert "real lacks 1 of its videos, other" in str(wrong.value)


def test_counts_must_match_where_names_do_not(sets, tmp_path):
    (tmp_path / "real").symlink_to(sets / "real")
    evaluation_sets.arrays(tmp_path / "fewer", COUNT - 2)
    unpaired = evaluation_sets.protocol(pairing="none")
    with pytest.raises(UserError, match="has 10 videos, but 12 are compared"):
        score(tmp_path, "fewer", tmp_path / "o", protocol=unpaired)
    found = score(tmp_path, "fewer", tmp_path / "o", protocol=unpaired.with_videos(5))
    assert found["FVD"].videos == 5 and found["FVD"].low is None


def test_images_of_ones_own(sets, tmp_path):
    for i in range(COUNT):
        write_png(tmp_path / "images" / f"clip_{i}.png", 255 - evaluation_sets.clip(i)[0])
    found = score(sets, "still", tmp_path / "o", images=tmp_path / "images")
    seen = [
        np.abs(255.0 - 2 * evaluation_sets.clip(i)[0].astype(float)).mean() for i in range(COUNT)
    ]
    assert found["PIC"].value == pytest.approx(1 - np.mean(seen) / 255, abs=1e-6)
    (tmp_path / "images" / "clip_4.png").unlink()
    with pytest.raises(UserError, match="lacks the images of clip_4"):
        score(sets, "still", tmp_path / "o", images=tmp_path / "images")


def test_short_and_few_videos_are_refused(sets, tmp_path):
    (tmp_path / "real").symlink_to(sets / "real")
    evaluation_sets.arrays(tmp_path / "short", COUNT, frames=15)
    with pytest.raises(UserError, match=r"12 videos .* has 15 frames, but 16 frames are needed"):
        score(tmp_path, "short", tmp_path / "o")
    evaluation_sets.arrays(tmp_path / "one", 1)
    with pytest.raises(UserError, match="too few videos to compare: 1"):
        score(tmp_path, "one", tmp_path / "o", reference="one")


def test_sizes_may_be_mixed(sets, tmp_path):
    (tmp_path / "real").symlink_to(sets / "real")
    evaluation_sets.arrays(tmp_path / "mixed", COUNT)
    large = np.repeat(np.repeat(evaluation_sets.clip(0), 2, 1), 2, 2)
    np.save(tmp_path / "mixed" / "clip_0.npy", large)
    assert score(tmp_path, "mixed", tmp_path / "o")["FVD"].value < 1


def test_the_report_says_everything(sets, tmp_path):
    (tmp_path / "real").symlink_to(sets / "real")
    found = score(sets, "light", tmp_path, draw=draw_plots)
    said = report(tmp_path)
    protocol = evaluation_sets.protocol()
    assert said["protocol"] == protocol.as_json()
    assert said["protocol_sha256"] == protocol.sha256
    assert said["measures"]["i3d"] == {"network": "i3d", "version": 1}
    assert said["measured_now"]["clips"] == 2 * COUNT
    assert said["data"] == "here" and said["left_out"] == {}
    stored = said["sets"]["videos"]
    assert stored["scores"]["FVD"]["value"] == found["FVD"].value
    assert stored["curve"]["videos"] == [6, COUNT]
    assert stored["curve"]["FVD"][-1] == pytest.approx(found["FVD"].value)
    assert len(stored["framewise"]["mean"]) == 16
    page = (tmp_path / "report.md").read_text()
    assert f"| FVD | lower | {found['FVD'].value:.2f} (" in page
    assert said["clip_list_sha256"] in page and protocol.sha256 in page
    for name in ("videos.svg", "clips.svg", "frames.svg"):
        assert f"![{name}]({name})" in page
        assert b"</svg>" in (tmp_path / name).read_bytes()


def test_groups_are_told_apart(tmp_path):
    for part, noise in (("a", 0.0), ("b", 30.0)):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "real").mkdir(exist_ok=True)
        evaluation_sets.arrays(tmp_path / "videos" / part, 3, noise=noise)
        evaluation_sets.arrays(tmp_path / "real" / part, 3)
    score(tmp_path, "videos", tmp_path / "o", draw=draw_plots)
    said = report(tmp_path / "o")["sets"]["videos"]
    groups = said["groups"]
    assert set(groups) == {"a", "b"} and groups["a"]["videos"] == 3
    assert groups["a"]["PIC"] > groups["b"]["PIC"]
    assert any("too few for confidence intervals" in note for note in said["notes"])
    assert any("FVD far too large" in note for note in said["notes"])
    assert (tmp_path / "o" / "groups.svg").exists()


def test_values_that_are_not_finite_are_refused(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_sets, "motion", lambda seen: np.full(1, np.nan))
    with pytest.raises(UserError, match="frames gives NaN or infinite values for clip_"):
        score(sets, "light", tmp_path)


def test_processes_share_the_clips(sets, tmp_path, monkeypatch):
    """Two that run one after the other, the second of which compares."""
    waited = []
    monkeypatch.setattr(run.distributed, "wait_for_all", waited.append)
    monkeypatch.setattr(run.jax, "process_count", lambda: 2)
    protocol = evaluation_sets.protocol()
    counts, found = [], []
    for process in (1, 0):
        monkeypatch.setattr(run.jax, "process_index", lambda process=process: process)
        real, _ = run.open_reference(protocol, str(sets / "real"))
        given, _ = pair(protocol, open_folder(str(sets / "light")), real, None)
        candidates = run.Candidates(
            given.items(), reading(given.read), {run.VIDEOS: run.as_they_are}
        )
        counted = Counted()
        bench = counted.bench(tmp_path, process=process)
        found.append(run.evaluate(protocol, bench, real, candidates, tmp_path, {}))
        counts.append(counted.calls["i3d"])
    assert counts == [COUNT, COUNT] and found[0] == []
    assert waited == ["measured", "reported"] * 2
    monkeypatch.undo()
    alone = score(sets, "light", tmp_path / "alone")
    assert {one.metric: one for one in found[1][0].scores} == alone
