"""Metrics as TensorBoard and a script read them."""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import storage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.training import metrics
from dynamicrafter_jax.training.metrics import MetricWriter


def shown(workdir: Path) -> EventAccumulator:
    """What TensorBoard makes of a folder."""
    accumulator = EventAccumulator(str(workdir))
    accumulator.Reload()
    return accumulator


def curve(workdir: Path, name: str) -> dict[int, float]:
    points = [(event.step, event.value) for event in shown(workdir).Scalars(name)]
    assert points == sorted(points, key=lambda point: point[0])
    assert len({step for step, _ in points}) == len(points)
    return dict(points)


def lines(workdir: Path, name: str) -> dict[int, Any]:
    return {line["step"]: line[name] for line in runs.noted(workdir)}


def test_scalars_of_every_kind_of_number(tmp_path: Path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(3, {"loss": 0.25, "count": 7, "norm": np.float32(1.5)})
        writer.scalars(6, {"loss": jnp.float32(0.5), "count": np.int64(8)})
        writer.scalars(9, {"loss": jnp.asarray(2, jnp.bfloat16), "count": np.asarray(9.5)})
    assert curve(tmp_path, "loss") == lines(tmp_path, "loss") == {3: 0.25, 6: 0.5, 9: 2.0}
    assert curve(tmp_path, "count") == lines(tmp_path, "count") == {3: 7, 6: 8, 9: 9.5}
    assert curve(tmp_path, "norm") == {3: 1.5}
    (event, *_) = shown(tmp_path).Scalars("loss")
    assert event.wall_time == pytest.approx(runs.noted(tmp_path)[0]["time"], abs=1)


@pytest.mark.parametrize(
    "value", [True, "0.5", None, 1j, [1.0], np.ones(2), jnp.ones((1, 1)), np.bool_(True)]
)
def test_what_is_no_number_is_refused(tmp_path: Path, value):
    writer = MetricWriter(tmp_path)
    with pytest.raises(TypeError, match=r"the metric 'loss' is .*: a real number is needed"):
        writer.scalars(1, {"fine": 1.0, "loss": value})
    assert shown(tmp_path).Tags()["scalars"] == [] and not runs.noted(tmp_path)


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": math.nan, "norm": math.inf})
    assert math.isnan(curve(tmp_path, "loss")[1]) and curve(tmp_path, "norm")[1] == math.inf
    text = (tmp_path / metrics.LINES).read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads(text, parse_constant=refuse)
    assert line["loss"] is None and line["norm"] is None


def test_numbers_beyond_float32_are_infinite(tmp_path: Path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(2**40, {"größe/high": 1e39, "größe/low": -1e300})
    assert curve(tmp_path, "größe/high") == {2**40: math.inf}
    assert curve(tmp_path, "größe/low") == {2**40: -math.inf}
    assert lines(tmp_path, "größe/low") == {2**40: -1e300}


def test_event_files_begin_as_all_do(tmp_path: Path):
    with MetricWriter(tmp_path) as writer:
        path = Path(writer._events.path)
    # 24 bytes follow, with the checksum of that number, a double, and the format.
    begin = path.read_bytes()
    assert begin[:12] == b"\x18\0\0\0\0\0\0\0\xa3\x7fK\x22"
    assert begin[12] == 0x09 and begin[21:36] == b"\x1a\x0dbrain.Event:2"


def test_a_run_that_resumes_has_one_history(tmp_path: Path):
    first = MetricWriter(tmp_path)
    for step in (10, 20, 30, 40):
        first.scalars(step, {"loss": step / 100})
    first.scalars(40, {"validation/loss": 1.0})
    second = MetricWriter(tmp_path, first_step=30)  # killed, and back at an older checkpoint
    assert curve(tmp_path, "loss") == pytest.approx({10: 0.1, 20: 0.2})
    assert lines(tmp_path, "loss") == {10: 0.1, 20: 0.2}
    for step in (30, 40, 50):
        second.scalars(step, {"loss": step})
    third = MetricWriter(tmp_path, first_step=50)
    third.scalars(50, {"loss": -1.0})
    wanted = {10: 0.1, 20: 0.2, 30: 30.0, 40: 40.0, 50: -1.0}
    assert curve(tmp_path, "loss") == pytest.approx(wanted)
    assert lines(tmp_path, "loss") == wanted
    assert shown(tmp_path).Scalars("validation/loss") == []


def test_a_kill_in_the_middle_of_a_write_loses_that_record_alone(tmp_path: Path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": step})
    for path in tmp_path.iterdir():
        os.truncate(path, path.stat().st_size - 5)
    assert curve(tmp_path, "loss") == {1: 1, 2: 2} and lines(tmp_path, "loss") == {1: 1, 2: 2}
    later = MetricWriter(tmp_path, first_step=3)
    later.scalars(3, {"loss": 30})
    later.scalars(4, {"loss": 40})
    wanted = {1: 1, 2: 2, 3: 30, 4: 40}
    assert curve(tmp_path, "loss") == wanted and lines(tmp_path, "loss") == wanted


def test_a_line_that_is_none_is_left_out_and_named(tmp_path: Path):
    path = tmp_path / metrics.LINES
    path.write_bytes(b'{"step": 1, "loss": 1}\n\x00\x00\n[2]\n{"step": 3, "loss": 3}\n')
    with pytest.warns(UserWarning, match=r"line [23] is no line of metrics") as warned:
        MetricWriter(tmp_path, first_step=3)
    assert len(warned) == 2 and path.read_bytes() == b'{"step": 1, "loss": 1}\n'


def test_files_follow_one_another_even_on_a_machine_whose_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = []
    for now in (2e9, 2e9 - 500):
        monkeypatch.setattr(metrics.time, "time", lambda now=now: now)
        with MetricWriter(tmp_path) as writer:
            writer.scalars(1, {"loss": now})
        names.append(writer._events.path.name)
    assert names == sorted(names) and len(set(names)) == 2
    assert curve(tmp_path, "loss") == {1: np.float32(2e9 - 500)}


def test_videos_play_in_tensorboard(tmp_path: Path):
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    video = np.broadcast_to(ramp[:, None, None, None], (16, 12, 20, 3))
    with MetricWriter(tmp_path) as writer:
        writer.video(500, "samples/ramp", video, 8.0)
    (event,) = shown(tmp_path).Images("samples/ramp")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, event.width, event.height) == (500, 20, 12)
    assert picture.format == "GIF" and getattr(picture, "n_frames", 1) == 16
    for frame in range(16):
        picture.seek(frame)
        assert np.abs(np.asarray(picture.convert("RGB")) - ramp[frame].astype(int)).max() <= 4
        assert picture.info["duration"] in (120, 130)


def test_large_and_fast_videos_are_shown_small_and_slower(tmp_path: Path):
    with MetricWriter(tmp_path) as writer:
        writer.video(1, "wide", np.zeros((2, 64, 1024, 3), np.uint8), 240)
    (event,) = shown(tmp_path).Images("wide")
    assert (event.width, event.height) == (256, 16)


def test_a_writer_that_is_off_does_nothing(tmp_path: Path):
    with MetricWriter(tmp_path / "none", enabled=False) as writer:
        writer.scalars(1, {"loss": "not even a number"})
        writer.video(1, "video", np.zeros((1, 8, 8, 3), np.uint8), 8)
        writer.flush()
    assert not writer.enabled and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(UserError, match="can't be written"):
        MetricWriter(tmp_path / "run")


def test_a_remote_run_is_written_and_split_into_files_that_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = storage.memory_bucket(monkeypatch)
    monkeypatch.setattr(metrics, "_REMOTE_FILE_BYTES", 200)
    for first_step in (0, 4):
        with MetricWriter("gs://bucket/run", first_step=first_step) as writer:
            for step in range(first_step, first_step + 6):
                writer.scalars(step, {"loss": first_step + step})
    wanted = {0: 0, 1: 1, 2: 2, 3: 3} | {step: 4 + step for step in range(4, 10)}
    for path in stored:
        (tmp_path / path.rsplit("/", 1)[1]).write_bytes(files.read_bytes(path))
    assert len(list(tmp_path.glob("events*"))) > 2
    assert curve(tmp_path, "loss") == lines(tmp_path, "loss") == wanted
