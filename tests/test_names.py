"""Names of any bytes, and of any length that the disk takes."""

import json
import os
from pathlib import Path

import bulk_jobs
import evaluation_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import video_files
from data.listed import Listed
from etils import epath
from PIL import Image

from dynamicrafter_jax import cli, media
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.tfds.builder import prepare
from dynamicrafter_jax.data.tfds.source import open_tfds
from dynamicrafter_jax.data.videos import Video
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation import clips, footage
from dynamicrafter_jax.evaluation.datasets import open_folder
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.weights import converted, tensors

ODD = os.fsdecode(b"caf\xe9")  # in Latin-1, which is not UTF-8
LONG = "狗" * 80  # three bytes each


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name is not UTF-8."""
    (tmp_path / ODD).mkdir()
    return tmp_path / ODD


@pytest.mark.parametrize("kind", [".mp4", ".gif", ".webp", "/"])
def test_videos_have_names_of_any_bytes_and_length(place: Path, kind: str):
    video = video_files.numbered(3)
    longest = "a" * (files.NAME_BYTES - len(kind.strip("/")))
    for name in (ODD, LONG, longest):
        output = f"{place}/{name}{kind}"
        media.check_output(output)
        provenance.check_places([output], named=True)
        media.write_video(output, video, 8)
        provenance.write_record(provenance.record_beside(output), {"image": output})
        record = f"{output.removesuffix('/')}.json"
        if name == longest:
            (record,) = (f"{place}/{file}" for file in os.listdir(place) if "a-" in file)
        assert json.loads(Path(record).read_bytes())["image"] == output
    assert len(os.listdir(place)) == 6
    assert max(len(os.fsencode(name)) for name in os.listdir(place)) == files.NAME_BYTES


@pytest.mark.parametrize("name", ["a" * 252, LONG + "a" * 12])
def test_what_is_too_long_is_refused_first(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"mp4 can't be written: File name too long"):
        media.check_output(tmp_path / f"{name}.mp4")
    assert os.listdir(tmp_path) == []


def test_every_kind_of_file_is_written_at_the_limit(tmp_path: Path):
    name = tmp_path / ("狗" * 85)
    files.check_writable(name)
    files.write_bytes(name, b"1")
    files.write_json(name, 2)
    files.write_array(name, np.ones(3))
    np.testing.assert_array_equal(files.read_array(name), np.ones(3))
    with pytest.raises(UserError, match="File name too long"):
        files.check_writable(f"{name}a")
    with pytest.raises(UserError, match="File name too long"):
        files.write_bytes(f"{name}a", b"1")
    assert os.listdir(tmp_path) == [name.name]


def test_a_job_among_odd_names(place: Path):
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(place / f"{ODD}.png")
    row = {"id": LONG, "image": f"{ODD}.png"}
    (request,) = bulk_jobs.requests(bulk_jobs.table(place, [row]))
    folder = f"{place}/videos"
    manifest = bulk.Manifest(folder)
    loader = bulk.Loader(manifest, {}, 77)
    loaded = loader.load([loader.inspect(request)])
    options: dict = {"codec": "libx264", "crf": 18}
    writer = bulk.Writer(manifest, folder, **options, made_with={}, details={})
    for _, one in loaded.wanted:
        writer.video(one, video_files.numbered(3), 1.0)
    bulk.check_folder(folder, [LONG])
    bulk.remove_leftovers(folder, [LONG])
    again = bulk.Loader(bulk.Manifest(folder), {}, 77).inspect(request)
    assert again.finished and again.error is None
    assert json.loads((place / "videos" / f"{LONG}.mp4.json").read_bytes())["id"] == LONG
    (line,) = bulk_jobs.lines(place / "videos")
    assert line["image"] == f"{place}/{ODD}.png"


def test_a_table_may_lie_among_odd_names(place: Path):
    (place / "a.csv").write_text("id,image\na,0.png\nb\n")
    with pytest.raises(UserError) as refused:
        bulk_jobs.requests(place / "a.csv")
    assert str(refused.value) == f"{place}/a.csv, line 3: has no 'image'"


def test_models_among_odd_names(place: Path):
    tree = {"a": {"b": jnp.arange(3.0)}}
    converted.save_tree(place / "new" / ODD / "params", tree)
    found = converted.restore_tree(place / "new" / ODD / "params", jax.eval_shape(lambda: tree))
    np.testing.assert_array_equal(found["a"]["b"], [0, 1, 2])
    torch = pytest.importorskip("torch")
    with (place / f"{ODD}.ckpt").open("wb") as file:
        torch.save({"a": torch.arange(3)}, file)
    with tensors.open_tensors(place / f"{ODD}.ckpt") as opened:
        np.testing.assert_array_equal(opened["a"].read(), [0, 1, 2])


def test_data_among_odd_names(place: Path):
    video_files.write(place / f"{ODD}.mp4", video_files.numbered(3))
    (place / f"{ODD}.txt").write_text("a dog")
    (video,) = open_source(os.fspath(place))
    assert (video.name, video.caption) == (f"{ODD}.mp4", "a dog")
    with open_video(video.file, video.name) as reader:
        assert reader.num_frames == 3


def test_prepared_data_among_odd_names(place: Path):
    folder = prepare(Listed([Video(f"{ODD}.mp4", "a dog", b"video")]), "clips", place / "data")
    assert folder == epath.Path(place / "data/clips/1.0.0") and folder.exists()
    (video,) = open_tfds("clips", data_dir=place / "data")
    assert (video.name, video.caption, video.file) == ("caf\ufffd.mp4", "a dog", b"video")


def test_evaluation_among_odd_names(place: Path):
    frames = np.zeros((50, 32, 48, 3), np.uint8)
    for name in (ODD, f"{ODD}2"):
        np.save(place / f"{name}.npy", frames)
    chosen, problems = clips.choose(evaluation_sets.protocol(), open_folder(os.fspath(place)))
    assert sorted(clip.name for clip in chosen) == [ODD, f"{ODD}2"] and not problems
    clips.write_list(place / "clips.jsonl", chosen)
    assert clips.read_list(place / "clips.jsonl") == chosen
    assert len({clip.sample_index for clip in chosen}) == 2
    media.write_video(place / "frames", frames[:2], 8)
    (place / "frames" / "frame_0000.png").rename(place / "frames" / f"{ODD}.png")
    assert footage.inspect(f"{place}/frames", "frames").frames == 2


def test_odd_names_are_printed(place: Path, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.argv", ["program"])
    monkeypatch.setattr("sys.stdout", os.fdopen(os.dup(1), "w", encoding="utf-8"))
    with pytest.raises(SystemExit):
        cli.run(lambda _: print(place.name, flush=True))
    assert capfdbinary.readouterr().out == b"caf\\udce9\n"


def test_half_a_character_is_no_path():
    with pytest.raises(UserError, match=r"'\\ud83d' is not a path: it holds half a character"):
        files.as_path("\ud83d")
