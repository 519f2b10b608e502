"""Files are whole or absent, whatever goes wrong."""

import contextlib
import json
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from storage import full_disk, memory_bucket

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What is stored behind `gs://` paths, in memory."""
    return memory_bucket(monkeypatch)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_atomic_file_appears_only_when_whole(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with files.atomic(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".a.txt.") and temporary.suffix == ".tmp"
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_atomic_replaces_in_one_step(tmp_path: Path):
    """Who reads the older file goes on reading the older file."""
    path = tmp_path / "a.txt"
    path.write_text("older")
    with open(path) as reader:
        files.write_bytes(path, b"newer")
        assert reader.read() == "older"
    assert path.read_text() == "newer"


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_atomic_keeps_the_older_file_when_the_block_fails(tmp_path: Path, error: BaseException):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(type(error)), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "older"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("before", ["nothing", "empty folder"])
def test_atomic_folder_takes_a_free_place(tmp_path: Path, before: str):
    path = tmp_path / "out"
    if before == "empty folder":
        path.mkdir()
    with files.atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["out"] and names(path) == ["a"]


# `epath` itself passes over names that end in "~".
@pytest.mark.parametrize("name", ["thesis.tex", "thesis.tex~", ".hidden"])
def test_atomic_folder_never_takes_the_place_of_one_in_use(tmp_path: Path, name: str):
    path = tmp_path / "out"
    path.mkdir()
    (path / name).write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        files.check_writable(path, folder=True)
    with pytest.raises(UserError, match="not empty"), files.atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["out"] and names(path) == [name]
    assert (path / name).read_text() == "years of work"


def test_atomic_folder_spares_what_comes_between_check_and_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "out"

    def check_too_early(*args, **kwargs):
        path.mkdir()
        (path / "thesis.tex").touch()

    monkeypatch.setattr(files, "_check_place", check_too_early)
    with pytest.raises(UserError, match="not empty"), files.atomic(path) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["out"] and names(path) == ["thesis.tex"]


def test_atomic_folder_is_removed_when_the_block_fails(tmp_path: Path):
    with pytest.raises(RuntimeError), files.atomic(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == []


def test_atomic_does_not_mix_files_and_folders(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("older")
    with pytest.raises(UserError, match="folder is a directory"):
        files.write_bytes(tmp_path / "folder", b"1")
    with (
        pytest.raises(UserError, match="file is a file"),
        files.atomic(tmp_path / "file") as temporary,
    ):
        temporary.mkdir()
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "older"


def test_atomic_writes_through_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "real")
    files.write_bytes(tmp_path / "latest", b"1")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "disk" / "real").read_bytes() == b"1"


def test_pipes_and_devices_are_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for write in (files.check_writable, lambda path: files.write_bytes(path, b"1")):
        with pytest.raises(UserError, match="device or a pipe"):
            write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_bytes(path, bytes(100_000)),
        lambda path: files.write_json(path, list(range(50_000))),
        lambda path: files.write_array(path, np.zeros(50_000)),
    ],
)
def test_full_disk_keeps_the_older_file(tmp_path: Path, write: Callable[[Path], None]):
    path = tmp_path / "a"
    path.write_text("older")
    with (
        full_disk(10_000),
        pytest.raises(UserError, match=r"a can't be written: .*; check") as caught,
    ):
        write(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "older"
    assert names(tmp_path) == ["a"]


def test_json_round_trip(tmp_path: Path):
    value = {"prompt": "ein Fuß, 滑", "file": os.fsdecode(b"\xff.png"), "seed": 3, "none": None}
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
    assert "ein Fuß, 滑" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_holds_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []


def test_array_round_trip(tmp_path: Path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    files.write_array(tmp_path / "latents.npy", array)
    for read in (np.load, files.read_array):
        again = read(tmp_path / "latents.npy")
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, array)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.path),)


def test_pickled_arrays_are_refused_and_not_run(tmp_path: Path):
    objects = np.array([Bomb(tmp_path / "boom")], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy is not a whole \.npy file"):
        files.read_array(tmp_path / "a.npy")
    assert names(tmp_path) == ["a.npy"]


def test_damaged_arrays(tmp_path: Path):
    np.save(tmp_path / "whole.npy", np.zeros(1000))
    data = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(data[:500])
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    for name, message in {
        "short.npy": "not a whole .npy file",
        "text.npy": "not a whole .npy file",
        "several.npz": "holds several arrays",
    }.items():
        with pytest.raises(UserError, match=f"{name} .*{message}"):
            files.read_array(tmp_path / name)


def test_unreadable_files(tmp_path: Path):
    (tmp_path / "empty").touch()
    for path, message in {
        tmp_path / "none.png": "none.png does not exist: check the path",
        tmp_path: "is a directory: give the path of a file",
        tmp_path / "empty": r"is empty \(0 bytes\)",
        tmp_path / ("x" * 300): "can't be read: File name too long",
        "https://example.org/a.png": "https:// is not supported: download the file",
        "a\0b": "null character",
    }.items():
        with pytest.raises(UserError, match=message):
            files.read_bytes(path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    files.write_bytes("~/a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("place", ["a.mp4", "new/folder/a.mp4", "here.mp4"])
def test_check_writable_leaves_nothing(tmp_path: Path, place: str):
    (tmp_path / "here.mp4").write_text("older")
    files.check_writable(tmp_path / place)
    assert names(tmp_path) == ["here.mp4"]
    assert (tmp_path / "here.mp4").read_text() == "older"


def test_check_writable_refuses(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for path, message in {
        tmp_path / "file" / "a.mp4": "can't be written: .*file is a file, not a directory",
        tmp_path / "file" / "new" / "a.mp4": "file is a file, not a directory",
        tmp_path / "full": "full is a directory",
        tmp_path / ("x" * 300): "can't be written: File name too long",
        tmp_path / ("x" * 300) / "a.mp4": "can't be written: File name too long",
        "/proc/a.mp4": "/proc/a.mp4 can't be written",
        "/proc/new/a.mp4": "/proc/new/a.mp4 can't be written",
    }.items():
        with pytest.raises(UserError, match=message):
            files.check_writable(path)
    for path, message in {
        tmp_path / "full": "full is a folder that is not empty",
        tmp_path / "file": "file is a file, which a folder can't replace",
        "/proc/frames": "/proc/frames can't be written",
    }.items():
        with pytest.raises(UserError, match=message):
            files.check_writable(path, folder=True)
    assert names(tmp_path) == ["file", "full"]


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Root is not bound by permission bits, so it is nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(user)


def test_check_writable_refuses_a_locked_directory():
    # Not in `tmp_path`: nobody may not enter root's.
    with tempfile.TemporaryDirectory() as folder:
        for mode, refused in ((0o777, False), (0o555, True)):
            Path(folder).chmod(mode)
            raises = pytest.raises(UserError, match="can't be written: Permission denied")
            with raises if refused else contextlib.nullcontext(), bound_by_permissions():
                files.check_writable(Path(folder) / "a.mp4")


def test_bucket(bucket: dict[str, object]):
    files.check_writable("gs://bucket/runs/a.json")
    assert not bucket
    files.write_json("gs://bucket/runs/a.json", 1)
    files.write_json("gs://bucket/runs/a.json", 2)
    assert files.read_bytes("gs://bucket/runs/a.json") == b"2\n"
    files.write_array("gs://bucket/latents.npy", np.ones(3))
    np.testing.assert_array_equal(files.read_array("gs://bucket/latents.npy"), np.ones(3))
    with pytest.raises(RuntimeError), files.atomic("gs://bucket/b") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    with files.atomic("gs://bucket/frames") as temporary:
        temporary.mkdir()
        (temporary / "0.png").write_bytes(b"0")
    with pytest.raises(UserError, match="not empty"):
        files.check_writable("gs://bucket/frames", folder=True)
    with pytest.raises(UserError, match="gs://bucket/none does not exist"):
        files.read_bytes("gs://bucket/none")
    assert sorted(bucket) == [
        "gs://bucket/frames/0.png",
        "gs://bucket/latents.npy",
        "gs://bucket/runs/a.json",
    ]


def test_outputs_and_inputs_are_apart(tmp_path: Path):
    (tmp_path / "a.npy").touch()
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    (tmp_path / "folder").symlink_to(tmp_path)
    read = [("--image", tmp_path / "a.npy"), ("--noise", "gs://bucket/noise.npz")]
    files.check_apart([("--x", tmp_path / "x.npy"), ("--y", tmp_path / "y.npy")], read)
    for written, message in {
        ("b.npy", "b.npy"): "--y and --x are the same file, .*b.npy: give different",
        (
            "b.npy",
            "B.npy",
        ): "--y and --x are the same file, .*B.npy: give different",  # on some disks
        ("b.npy", "folder/b.npy"): "--y and --x are the same file, .*b.npy: give different",
        ("b.npy", "c/../b.npy"): "--y and --x are the same file, .*b.npy: give different",
        ("b.npy", "a.npy"): "--y would replace --image, .*a.npy: give another path",
        ("link.npy", "b.npy"): "--x would replace --image, .*a.npy: give another path",
    }.items():
        x, y = (os.fspath(tmp_path / name) for name in written)
        with pytest.raises(UserError, match=message):
            files.check_apart([("--x", x), ("--y", y)], read)
    with pytest.raises(UserError, match=r"--x would replace --noise, gs://bucket/noise\.npz"):
        files.check_apart([("--x", "gs://bucket/noise.npz")], read)
