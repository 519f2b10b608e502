"""The manifest: whole lines, one file in the end."""

import json

import pytest

from dynamicrafter_jax.sampling.bulk.manifest import Manifest, fingerprint, read_manifest


def entry(name: str, finished: float = 0.0, mark: str = "f", **more) -> dict:
    done = {"status": "done", "output": f"{name}.mp4", "bytes": 3, "fingerprint": mark}
    return {"id": name} | done | {"time": {"finished": finished}} | more


def test_an_output_is_finished_if_its_line_and_its_file_agree(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add(entry("a"))
    assert not Manifest(tmp_path).finished("a", "f")  # no file
    (tmp_path / "a.mp4").write_bytes(b"abc")
    again = Manifest(tmp_path)
    assert again.finished("a", "f") and not again.finished("a", "g") and again.knows("a")
    assert not again.finished("b", "f") and not again.knows("b")
    (tmp_path / "a.mp4").write_bytes(b"ab")
    assert not Manifest(tmp_path).finished("a", "f")
    manifest.add({"id": "e", "status": "error", "error": "gone", "time": {"finished": 1.0}})
    assert not Manifest(tmp_path).finished("e", "f") and not Manifest(tmp_path).knows("e")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_line_counts_as_absent_and_spoils_none(tmp_path, cut):
    manifest = Manifest(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"abc")
        manifest.add(entry(name))
    file = tmp_path / "manifest.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = Manifest(tmp_path)
    # All of a line but its end is a line.
    assert again.finished("a", "f") and again.finished("b", "f") == (cut == 1)
    again.add(entry("c"))
    expected = ["a", "b", "c"] if cut == 1 else ["a", "c"]
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == expected
    assert file.read_bytes().endswith(b"\n")


def test_the_parts_of_all_processes_become_one_in_the_table_s_order(tmp_path):
    first, second = Manifest(tmp_path, 0), Manifest(tmp_path, 1)
    second.add(entry("b", 1.0))
    first.add(entry("c", 2.0, mark="old"))
    second.add(entry("c", 3.0, mark="new"))
    first.add(entry("a", 4.0))
    first.add(entry("of another table", 0.5))
    assert {file.name for file in tmp_path.iterdir()} == {"manifest.jsonl", "manifest-00001.jsonl"}
    (tmp_path / "c.mp4").write_bytes(b"abc")
    assert Manifest(tmp_path, 5).finished("c", "new")  # each process knows of all
    merged = first.compact(["a", "b", "c", "never made"])
    assert list(merged) == ["a", "b", "c", "of another table"]
    assert [file.name for file in tmp_path.glob("manifest*")] == ["manifest.jsonl"]
    assert read_manifest(tmp_path) == merged and merged["c"]["fingerprint"] == "new"


def test_a_fingerprint_is_of_content_and_not_of_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1, "b": [2]}) != fingerprint({"a": 1, "b": [3]})
