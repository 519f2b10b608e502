"""Jobs in this process: the same numbers however they are batched, and nothing made twice."""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bulk_jobs
import numpy as np
import pytest
import tiny
from etils import epath
from PIL import Image

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.bulk.loading import Inspected
from dynamicrafter_jax.sampling.bulk.run import Span, busy_share
from dynamicrafter_jax.sampling.sampler import Sampler, shown_frames

# Nine rows for batches of four: two kinds of tables, scales and texts of their own, one repeated
# image and text each. Two guided passes are one bucket.
ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{i}",
        "image": f"{i % 3}.png",
        "prompt": ("a cat", "a dog")[i % 2],
        "seed": i // 4,
        "guidance_scale": 2 + i,
        "fps": 10 + i,
        "steps": 3 if i > 6 else 2,
    }
    for i in range(9)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bulk")
    bulk_jobs.pictures(place)
    bulk_jobs.table(place, ROWS)
    return place


@pytest.fixture(scope="module")
def finished(folder):
    """A job of batches of four that ran to its end."""
    job = bulk_jobs.Job(folder / "four", 4)
    summary = job(folder / "table.jsonl")
    assert (summary.made, summary.kept, summary.failed) == (9, 0, 0) and not summary.stopped
    return job


def test_nothing_is_lost_and_the_manifest_tells_all_in_order(finished):
    assert set(finished.videos()) == {f"r{i}.mp4" for i in range(9)}
    assert len(set(finished.videos().values())) == 9
    lines = finished.lines()
    assert [line["id"] for line in lines] == [row["id"] for row in ROWS]
    for line, row in zip(lines, ROWS, strict=True):
        assert line["status"] == "done" and line["prompt"] == row["prompt"]
        assert line["bytes"] == len(finished.videos()[line["output"]])
        assert line["settings"]["guidance_scale"] == row["guidance_scale"]
        assert line["settings"]["seed"] == line["seed"] == row["seed"]


def test_what_is_finished_is_kept(finished, folder):
    before = {file.name: file.stat().st_mtime_ns for file in finished.folder.glob("*.mp4")}
    lines = finished.lines()
    summary = finished(folder / "table.jsonl")
    assert (summary.made, summary.kept, finished.runs[-1]) == (0, 9, [])
    assert before == {file.name: file.stat().st_mtime_ns for file in finished.folder.glob("*.mp4")}
    assert finished.lines() == lines


def test_what_is_half_there_or_made_from_other_things_is_made_again(finished, folder):
    whole, lines = finished.videos(), finished.lines()
    cut = finished.folder / "r4.mp4"
    cut.write_bytes(cut.read_bytes()[:-1])
    (finished.folder / "r8.mp4").unlink()
    summary = finished(folder / "table.jsonl")
    assert sorted(finished.runs[-1]) == ["r4", "r8"] and (summary.again, summary.kept) == (2, 7)
    assert finished.videos() == whole and finished.lines() == lines
    changed = [row | {"guidance_scale": 1.5} if row["id"] == "r1" else row for row in ROWS]
    summary = finished(bulk_jobs.table(folder, changed, "changed.jsonl"))
    assert finished.runs[-1] == ["r1"] and "(1 again, since their inputs changed" in str(summary)
    assert finished.videos()["r1.mp4"] != whole["r1.mp4"]
    finished(folder / "table.jsonl")
    assert finished.videos() == whole and finished.lines() == lines


def test_the_order_of_rows_changes_no_byte(finished, folder, tmp_path):
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    job = bulk_jobs.Job(tmp_path, 4)
    job(bulk_jobs.table(folder, shuffled, "shuffled.jsonl"))
    assert job.videos() == finished.videos()
    assert sorted(job.lines(), key=str) == sorted(finished.lines(), key=str)


def latents_and_frames(job: bulk_jobs.Job, requests: list, folder) -> tuple[np.ndarray, np.ndarray]:
    rows = bulk_jobs.read(requests, folder)
    with job.sample.sampler.in_force():
        latents, video = job.sample(rows)
    count = len(rows)
    return np.asarray(latents)[:count], shown_frames(np.asarray(video)[:count], loop=False)


def test_a_prompt_is_the_same_alone_in_a_batch_and_on_eight_devices(
    finished, folder, tmp_path, relative_error
):
    four = bulk_jobs.requests(folder / "table.jsonl")[:4]
    latents, frames = latents_and_frames(finished, four, folder)
    alone = bulk_jobs.Job(tmp_path, 1)
    config = tiny.micro().config.copy_and_resolve_references()
    config.mesh.data = 8
    eight = bulk_jobs.Job(tmp_path, 8, Sampler(config, sharding.mesh_of(config)))
    params = sharding.replicate(tiny.micro().params, eight.sample.sampler.mesh)
    eight.sample = bulk.BatchSampler(eight.sample.sampler, params, 8)
    results = [latents_and_frames(eight, four, folder)]
    each = [latents_and_frames(alone, [request], folder) for request in four[:2]]
    results.append((np.concatenate([a for a, _ in each]), np.concatenate([b for _, b in each])))
    for others, pictures in results:
        count = len(others)
        assert relative_error(others, latents[:count]) < 1e-5
        assert np.abs(pictures.astype(int) - frames[:count]).max() <= 1
    # And it is what the Python interface makes of the same request.
    request = four[1]
    clips = tiny.micro().sample(
        request.image,
        request.prompt,
        first_index=request.sample_index,
        **{name: getattr(request.settings, name) for name in ROWS[0] if name in _SETTINGS},
    )
    assert relative_error(clips.latents[0], latents[1]) < 1e-5


_SETTINGS = ("seed", "guidance_scale", "fps", "steps")


def test_each_text_and_image_is_encoded_once_and_each_bucket_compiled_once(folder, tmp_path):
    model = tiny.micro()
    job = bulk_jobs.Job(tmp_path, 4)
    encoder = job.sample.encoder
    calls, run = Counter(), encoder._run

    def counted(program, *args, **static):
        calls[program] += 1
        return run(program, *args, **static)

    encoder._run = counted
    before = len(model.sampler._denoise._compiled)
    job(folder / "table.jsonl")
    # Two prompts and the empty one; three images and none.
    assert calls[encoder.texts] == 3
    assert calls[encoder.images] == 4
    assert calls[encoder.posteriors] == 3
    assert calls[encoder._assemble] == 3
    assert len(model.sampler._denoise._compiled) == max(before, 1)
    for program in (encoder.texts, encoder.images, encoder.posteriors, encoder._assemble):
        assert len(program._compiled) == 1


def test_letterboxed_rows_of_one_batch_have_their_own_aspects(folder, tmp_path, relative_error):
    draw = np.random.default_rng(1).integers
    for name, size in (("tall", (32, 20)), ("wide", (20, 60))):
        Image.fromarray(draw(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [
        {"id": "tall", "image": "tall.png", "fit": "letterbox"},
        {"id": "cropped", "image": "tall.png"},
        {"id": "wide", "image": "wide.png", "fit": "letterbox", "loop": True},
        {"id": "ends", "image": "tall.png", "end_image": "wide.png", "fit": "letterbox"},
    ]
    table = bulk_jobs.table(folder, rows, "letterbox.jsonl")
    job = bulk_jobs.Job(tmp_path, 2)
    summary = job(table)
    assert (summary.made, summary.failed) == (3, 1)
    shapes = {
        name: media.read_video(tmp_path / f"{name}.mp4")[0].shape for name in ("tall", "wide")
    }
    assert shapes == {"tall": (3, 16, 10, 3), "wide": (2, 8, 24, 3)}
    assert media.read_video(tmp_path / "cropped.mp4")[0].shape == (3, 16, 24, 3)
    (failed,) = [line for line in job.lines() if line["status"] == "error"]
    assert failed["id"] == "ends" and "10 x 16 and 24 x 8 pixels" in failed["error"]
    # The same picture under two fits in one batch is encoded as two.
    two = bulk_jobs.requests(table)[:2]
    latents, _ = latents_and_frames(job, two, folder)
    for ours, request in zip(latents, two, strict=True):
        clips = tiny.micro().sample(
            request.image,
            first_index=request.sample_index,
            steps=request.settings.steps,
            fit=request.settings.fit,
        )
        assert relative_error(ours, clips.latents[0]) < 1e-5


def test_a_row_without_a_picture_is_noted_and_the_others_go_on(finished, folder, tmp_path):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    broken = {"r2": "cut.png", "r6": "missing.png", "r8": "missing.png"}
    rows = [row | {"image": broken.get(row["id"], row["image"])} for row in ROWS]
    rows.append(ROWS[0] | {"id": "alone", "image": "missing.png", "guidance_scale": 1})
    table = bulk_jobs.table(folder, rows, "broken.jsonl")
    job = bulk_jobs.Job(tmp_path, 4)
    summary = job(table)
    assert (summary.made, summary.failed) == (6, 4)
    failed = {line["id"]: line["error"] for line in job.lines() if line["status"] == "error"}
    assert set(failed) == {*broken, "alone"}
    assert "cut.png" in failed["r2"] and "missing.png does not exist" in failed["r6"]
    assert [line["id"] for line in job.lines()] == [row["id"] for row in rows]
    assert set(job.videos()) == {f"r{i}.mp4" for i in (0, 1, 3, 4, 5, 7)}
    # Put right, only these are made.
    summary = job(folder / "table.jsonl")
    assert sorted(job.runs[-1]) == sorted(broken) and summary.kept == 6


def test_leftovers_of_this_job_alone_are_removed(tmp_path):
    long = "r" * 251
    ours = [".r1.mp4.0123abcd.tmp", ".r1.mp4.json.0123abcd.tmp", ".summary.json.0123abcd.tmp"]
    ours += [".manifest.jsonl.0123abcd.tmp", ".manifest-00001.jsonl.0123abcd.tmp"]
    ours.append(files.beside(provenance.record_beside(f"{long}.mp4")).name)
    others = [".r2.mp4.0123abcd.tmp", "r1.mp4", ".r1.mp4.tmp", ".hidden", ".r1.json.0123abcd.tmp"]
    others += [".manifest-old.jsonl.0123abcd.tmp", files.beside(epath.Path(f"{long}s.mp4")).name]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    bulk.remove_leftovers(str(tmp_path), ["r1", long])
    assert {file.name for file in tmp_path.iterdir()} == set(others)


def test_the_busy_share_counts_what_the_device_waited_for():
    spans = [
        Span(asked=11.0, compiling=5.0, finished=20.0),  # idle 10-11, compiling 11-16
        Span(asked=18.0, compiling=0.0, finished=28.0),  # queued behind the first
        Span(asked=29.0, compiling=0.0, finished=39.0),  # idle 28-29
    ]
    seconds, compiling, busy = busy_share(spans, 10.0, 41.0)  # idle 39-41
    assert (seconds, compiling) == (26.0, 5.0)
    assert busy == pytest.approx(22 / 26)
    assert busy_share([], 0.0, 2.0) == (2.0, 0.0, 0.0)


class SlowDevice(bulk.BatchSampler):
    """Takes a while for each batch, one after the other, and answers at once."""

    def __init__(self, seconds: float) -> None:
        self.sampler = tiny.micro().sampler
        self._device = ThreadPoolExecutor(1)
        self._seconds = seconds

    def __call__(self, rows: Any) -> Any:
        video = _Later(self._device.submit(time.sleep, self._seconds), len(rows))
        return video, video


class _Later:
    def __init__(self, future, count):
        self._future, self._count = future, count

    def block_until_ready(self):
        self._future.result()
        return self

    def __array__(self, dtype=None, copy=None):
        return np.zeros((self._count, 2, 4, 4, 3), np.float32)


class SlowWriter(bulk.Writer):
    """Takes a while for each video."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def video(self, inspected, frames, seconds):
        time.sleep(self._seconds)


def test_reading_and_writing_hide_behind_the_device(folder):
    """Done in turn, the device would work for a third of the time."""
    request = bulk_jobs.requests(folder / "table.jsonl")[0]
    (row,) = bulk_jobs.read([request], folder)

    def load(number):
        time.sleep(0.05)
        return bulk.Loaded([row], [Inspected(request, {})])

    run = bulk.BulkRun(SlowDevice(0.05), load, SlowWriter(0.05))
    summary = run(range(40))
    assert summary.made == 40
    assert summary.device_busy > 0.85  # reading the first and writing the last can't hide


def test_it_stops_when_asked_and_what_was_begun_is_written(folder):
    request = bulk_jobs.requests(folder / "table.jsonl")[0]
    (row,) = bulk_jobs.read([request], folder)
    loaded = bulk.Loaded([row], [Inspected(request, {})])
    written = []
    run = bulk.BulkRun(
        SlowDevice(0.0),
        lambda number: loaded,
        SlowWriter(0.0),
        lambda number: number == 3,
        lambda one, seconds: written.append(one),
    )
    summary = run(range(10))
    assert summary.stopped and summary.made == len(written) == 3


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("of\nits own")


class BrokenDevice(SlowDevice):
    """Fails when a batch is queued, or later."""

    def __init__(self, at_once: bool) -> None:
        super().__init__(0.0)
        self._at_once = at_once

    def __call__(self, rows: Any) -> Any:
        if self._at_once:
            fails()
        video = _Later(self._device.submit(fails), len(rows))
        return video, video


@pytest.mark.parametrize("stage", ["hash", "read", "sample", "collect", "write"])
def test_whatever_fails_a_row_it_has_its_line(folder, tmp_path, monkeypatch, stage):
    manifest = bulk.Manifest(tmp_path)
    loader = bulk.Loader(manifest, {}, 77)
    options: dict[str, Any] = {"codec": "libx264", "crf": 18}
    writer = bulk.Writer(manifest, str(tmp_path), **options, made_with={}, details={})
    device = SlowDevice(0.0) if stage == "write" else BrokenDevice(stage == "sample")
    if stage == "hash":
        monkeypatch.setattr("dynamicrafter_jax.sampling.bulk.loading._hash", fails)
    if stage == "read":
        monkeypatch.setattr("dynamicrafter_jax.sampling.bulk.loading.fit_images", fails)
    if stage == "write":
        monkeypatch.setattr(media, "write_video", fails)
    run = bulk.BulkRun(
        device, lambda batch: loader.load([loader.inspect(one) for one in batch]), writer
    )
    (request, *_) = bulk_jobs.requests(folder / "table.jsonl")
    if stage in ("hash", "read"):
        assert run([[request]]).failed == 1  # and the others go on
    else:
        with pytest.raises(RuntimeError, match="its own"):
            run([[request]])
    (line,) = bulk_jobs.lines(tmp_path)
    assert (line["id"], line["status"]) == ("r0", "error")
    assert line["error"] == "RuntimeError: of its own"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r1.mp4", "my holidays", "r1.mp4 is there, and no run wrote it"),
        ("r1.mp4.json", "{}", "r1.mp4.json is in the way"),
        ("r1.mp4.json", "no json", "r1.mp4.json is in the way"),
        ("summary.json", '{"made": 1}', "summary.json is in the way"),
        ("summary-00001.json", "[]", "summary-00001.json is in the way"),
        ("manifest.jsonl", '{"id": "a"}\n', "manifest.jsonl is in the way"),
        ("manifest.jsonl", "a list of goods\n", "manifest.jsonl is in the way"),
        ("manifest-00003.jsonl", "[1]", "manifest-00003.jsonl is in the way"),
        ("r1.json", "{}", None),
        ("r11.mp4", "my holidays", None),
        ("manifest-old.jsonl", '{"id": "a"}\n', None),
        ("summary-of-all.json", "{}", None),
    ],
)
def test_files_of_the_user_stay(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    if said is None:
        bulk.check_folder(str(tmp_path), ["r0", "r1"])
        bulk.remove_leftovers(str(tmp_path), ["r0", "r1"])
        bulk.Manifest(tmp_path).compact(["r0", "r1"])
    else:
        with pytest.raises(UserError, match=said):
            bulk.check_folder(str(tmp_path), ["r0", "r1"])
    assert (tmp_path / name).read_text() == text


def test_what_runs_wrote_is_replaced(tmp_path):
    bulk.check_folder(str(tmp_path / "none"), ["r1"])
    provenance.write_record(tmp_path / "summary.json", {})
    (tmp_path / "r1.mp4").touch()  # of a run that was killed before its line
    provenance.write_record(tmp_path / "r1.mp4.json", {})
    (tmp_path / "r2.mp4").touch()  # as noted
    bulk.Manifest(tmp_path).add({"id": "r2", "status": "done", "time": {"finished": 0}})
    (tmp_path / "r3.mp4").mkdir()
    bulk.check_folder(str(tmp_path), ["r1", "r2"])
    with pytest.raises(UserError, match=r"r3\.mp4 is there, and no run wrote it"):
        bulk.check_folder(str(tmp_path), ["r3"])
