"""Which clips are chosen: the same on any machine, or none."""

import dataclasses
import hashlib

import evaluation_sets
import numpy as np
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import clips
from dynamicrafter_jax.evaluation.clips import choose, list_sha256, numbers_of, read_clip
from dynamicrafter_jax.evaluation.datasets import open_folder
from dynamicrafter_jax.evaluation.reference import Reference, pair

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = evaluation_sets.arrays(tmp_path_factory.mktemp("clips") / "a", COUNT, frames=50)
    np.save(folder / "short.npy", evaluation_sets.clip(0, 45))
    return folder


def few(count: int | None = 4, **frames):
    sections = {"clips": {"videos": count}, "frames": {"stride": 3, "start": "random"} | frames}
    return evaluation_sets.protocol(**sections)


def drawn(seed, purpose, name):
    """The rule, written once more."""
    text = f"{seed} {purpose} {name}".encode()
    return int(hashlib.sha256(text).hexdigest()[:16], 16)


def test_clips_follow_from_names_alone(folder):
    data = open_folder(str(folder))
    chosen, problems = choose(few(), data)
    assert problems == []
    names = [name for name in data.names if name != "short"]
    names.sort(key=lambda name: drawn(0, "clip", name))
    assert [clip.name for clip in chosen] == names[:4]
    assert [clip.start for clip in chosen] == [drawn(0, "start", n) % 5 for n in names[:4]]
    assert len({clip.start for clip in chosen}) > 1
    other, _ = choose(few(6), data)
    assert other[:4] == chosen
    backwards = dataclasses.replace(
        data, names=data.names[::-1], read=lambda i: data.read(COUNT - i), groups=[""] * 13
    )
    assert choose(few(), backwards)[0] == chosen


def test_frames_of_a_clip(folder):
    data, protocol = open_folder(str(folder)), few()
    (clip, *_), _ = choose(protocol, data)
    found = read_clip(data, numbers_of(data), clip, protocol.frames, protocol.picture)
    whole = np.load(folder / f"{clip.name}.npy")
    assert np.array_equal(found, whole[clip.start : clip.start + 46 : 3])


def test_given_videos_are_read_from_the_start_whatever_the_stride(folder, tmp_path):
    data, protocol = open_folder(str(folder)), few()
    reference = Reference(protocol, data, choose(protocol, data)[0])
    made = evaluation_sets.arrays(tmp_path / "made", COUNT, noise=3.0, frames=20)
    given, problems = pair(protocol, open_folder(str(made)), reference, None)
    assert problems == [] and len(given.clips) == 4
    for clip, item in zip(reference.clips, given.items(), strict=True):
        image, *frames = given.read(item)
        assert np.array_equal(image, np.load(folder / f"{clip.name}.npy")[clip.start])
        assert np.array_equal(frames, np.load(made / f"{clip.name}.npy")[:16])


def test_videos_that_are_too_short(folder):
    data = open_folder(str(folder))
    with pytest.raises(UserError, match=r"has 12 videos of 46 frames or more, but .* compares 13"):
        choose(few(13), data)
    # Where all are wanted, none is passed over without being asked.
    line = "1 videos can't be used: short has 45 frames, but 46 frames, for 16 at stride 3 are"
    with pytest.raises(UserError, match=line):
        choose(few(None), data)
    found, problems = choose(few(None), data, skip=True)
    assert len(found) == 12 and [one.name for one in problems] == ["short"]


def test_all_unreadable_videos_are_listed(folder, tmp_path):
    for file in folder.glob("*.npy"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("clip_1", "clip_5"):
        (tmp_path / f"{name}.npy").write_bytes(b"broken")
    data, protocol = open_folder(str(tmp_path)), few(10)
    with pytest.raises(UserError, match=r"2 videos can't be used: .*clip_[15]\.npy.*clip_[15]"):
        choose(protocol, data)
    found, problems = choose(protocol, data, skip=True)
    assert len(found) == 10 and {p.name for p in problems} == {"clip_1", "clip_5"}


def test_a_list_pins_down_files(folder, tmp_path):
    data, protocol = open_folder(str(folder)), few()
    chosen, _ = choose(protocol, data)
    clips.write_list(tmp_path / "clips.jsonl", chosen)
    assert clips.read_list(tmp_path / "clips.jsonl") == chosen

    def pinned(sha256=None, name="clips.jsonl"):
        listed = dataclasses.replace(protocol.clips, list=str(tmp_path / name), sha256=sha256)
        return dataclasses.replace(protocol, clips=listed)

    assert choose(pinned(list_sha256(chosen)), data)[0] == chosen
    with pytest.raises(UserError, match="it is not the list of folders"):
        choose(pinned("00"), data)
    changed = dataclasses.replace(chosen[0], sha256="00")
    gone = dataclasses.replace(chosen[1], name="gone")
    clips.write_list(tmp_path / "other.jsonl", [changed, gone, *chosen[2:]])
    with pytest.raises(UserError, match=r"2 videos .*gone is not in .*hashes to .* instead of 00"):
        choose(pinned(name="other.jsonl"), data)
    whole = (tmp_path / "clips.jsonl").read_text()
    for wrong, said in (
        ('{"name": "a"}\n', r"line 1: is not a clip: .* lacks"),
        (
            whole + whole.replace('"start": ', '"start": "').replace(', "fps', '", "fps'),
            "line 5: is",
        ),
        (
            whole.replace('"prompt": ""', '"prompt": false'),
            r"line 1: is not a clip: .*prompt is False",
        ),
        (
            whole.replace('"start": ', '"start": 0, "start": '),
            "line 1: the key 'start' occurs twice",
        ),
        (whole + "[]\n", "line 5: a JSON object is needed"),
    ):
        (tmp_path / "bad.jsonl").write_text(wrong)
        with pytest.raises(UserError, match=rf"bad\.jsonl, {said}"):
            choose(pinned(name="bad.jsonl"), data)


def test_the_rule_is_checked_against_a_hash(folder):
    data, protocol = open_folder(str(folder)), few()
    chosen, _ = choose(protocol, data)
    right = evaluation_sets.protocol(
        clips={"videos": 4, "sha256": list_sha256(chosen)},
        frames={"stride": 3, "start": "random"},
    )
    assert choose(right, data)[0] == chosen
    wrong = dataclasses.replace(right, clips=dataclasses.replace(right.clips, sha256="00"))
    with pytest.raises(UserError, match="are not those of folders"):
        choose(wrong, data)
