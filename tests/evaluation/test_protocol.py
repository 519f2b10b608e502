"""Protocols say everything once, and nothing that has no effect."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import protocol as protocols
from dynamicrafter_jax.evaluation.protocol import load_protocol, parse_protocol

FOLDER = Path(protocols.__file__).parent / "protocols"


def said(name="ucf101"):
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.json")))
def test_what_ships_is_read_as_it_stands(name):
    assert load_protocol(name).as_json() == said(name)
    assert load_protocol(FOLDER / f"{name}.json") == load_protocol(name)
    assert load_protocol(name).name == name


@pytest.mark.parametrize("name", ["ucf101", "msrvtt"])
def test_what_the_paper_fixes(name):
    protocol = load_protocol(name)
    assert protocol.clips.videos == 2048
    assert (protocol.frames.count, protocol.frames.stride) == (16, 3)
    assert protocol.frames.span == 46
    assert (protocol.picture.height, protocol.picture.width) == (256, 256)
    assert protocol.fs == protocols.Fs("stride", 3.0)


def test_hash_is_of_all_that_is_said():
    protocol = load_protocol("ucf101")
    canonical = said() | {"fs": {"meaning": "stride", "value": 3.0}}
    del canonical["clips"]["list"]
    text = json.dumps(canonical, sort_keys=True)
    assert protocol.sha256 == hashlib.sha256(text.encode()).hexdigest()
    fewer = protocol.with_videos(64)
    assert fewer.clips.videos == 64 and fewer.sha256 != protocol.sha256
    moved = dataclasses.replace(protocol.clips, list="elsewhere.jsonl")
    assert dataclasses.replace(protocol, clips=moved).sha256 == protocol.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(colour=1), "unknown key colour"),
        (lambda p: p.pop("frames"), "lacks frames"),
        (lambda p: p["frames"].update(strid=3), "unknown frames setting strid"),
        (lambda p: p["frames"].pop("stride"), "frames lacks stride"),
        (lambda p: p["frames"].update(stride="3"), "stride is '3'"),
        (lambda p: p["frames"].update(stride=0), "1 or more"),
        (lambda p: p["clips"].update(videos=1), "2 or more"),
        (lambda p: p["data"].update(set="ucf"), "choose from ucf101"),
        (lambda p: p.update(frames=3), "frames must be"),
        (lambda p: p.update(clips=None), "clips must be"),
        (lambda p: p.update(pairing="both"), "pairing is 'both'"),
        (lambda p: p.update(format=2), "format is 2"),
        (lambda p: p.update(version="1"), "version is '1'"),
    ],
)
def test_nonsense_is_refused(change, message):
    wrong = said()
    change(wrong)
    with pytest.raises(UserError, match=message):
        parse_protocol(wrong)


def test_files_are_refused_by_their_name(tmp_path):
    file = tmp_path / "mine.json"
    for text in ("[]", "{", '{"name": 1, "name": 2}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"mine\.json is not a protocol"):
            load_protocol(file)
    with pytest.raises(UserError, match=r"no protocol 'ucf': .*msrvtt, ucf101"):
        load_protocol("ucf")
    with pytest.raises(UserError, match="does not exist"):
        load_protocol(tmp_path / "none.json")


def test_pinned_clips_are_not_made_fewer(tmp_path):
    pinned = said()
    pinned["clips"]["list"] = "clips.jsonl"
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(pinned))
    protocol = load_protocol(file)
    assert protocol.clips.list == str(tmp_path / "clips.jsonl")
    with pytest.raises(UserError, match="pinned"):
        protocol.with_videos(64)
