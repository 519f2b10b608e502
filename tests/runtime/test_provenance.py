"""Records beside videos: where they lie, and what they never replace."""

import json
from pathlib import Path

import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import provenance


@pytest.mark.parametrize("video", ["cat.mp4", "cat.gif", "cat.webp", "frames", "frames/"])
def test_a_record_lies_beside_its_video(tmp_path: Path, video: str):
    record = provenance.record_beside(f"{tmp_path}/{video}")
    assert str(record) == f"{tmp_path}/{video.rstrip('/')}.json"


@pytest.mark.parametrize(
    "theirs",
    ["{}", '{"written_by": "hand"}', '{"written_by": ["dynamicrafter-jax"]}', "[1]", "", "\xff"],
)
def test_a_file_that_no_run_wrote_stays(tmp_path: Path, theirs: str):
    video, record = tmp_path / "cat.mp4", tmp_path / "cat.mp4.json"
    record.write_text(theirs, encoding="latin-1")
    for act in (
        lambda: provenance.check_places([video], named=True),
        lambda: provenance.write_record(record, {"seed": 1}),
    ):
        with pytest.raises(UserError, match=r"cat\.mp4\.json is in the way"):
            act()
    assert record.read_text(encoding="latin-1") == theirs
    (tmp_path / "cat.json").write_text("{}")  # which older tools write beside cat.mp4
    provenance.check_places([tmp_path / "dog.mp4", tmp_path / "cat.gif"], named=True)


def test_a_record_replaces_a_record(tmp_path: Path):
    record = tmp_path / "cat.mp4.json"
    for seed in (1, 2):
        provenance.check_places([tmp_path / "cat.mp4"], named=False)
        provenance.write_record(record, {"seed": seed})
        assert json.loads(record.read_bytes()) == {"written_by": "dynamicrafter-jax", "seed": seed}


def test_a_video_is_replaced_if_it_was_named_or_a_run_made_it(tmp_path: Path):
    (tmp_path / "cat-0.mp4").touch()
    provenance.check_places([tmp_path / "cat-0.mp4"], named=True)
    with pytest.raises(UserError, match=r"cat-0\.mp4 is there, and no run wrote it"):
        provenance.check_places([tmp_path / "cat-1.mp4", tmp_path / "cat-0.mp4"], named=False)
    provenance.write_record(tmp_path / "cat-0.mp4.json", {})
    provenance.check_places([tmp_path / "cat-1.mp4", tmp_path / "cat-0.mp4"], named=False)
    (tmp_path / "frames-0").mkdir()  # a folder that is empty may be taken
    provenance.check_places([tmp_path / "frames-0"], named=False)
