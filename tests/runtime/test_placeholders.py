"""What lies in place of a file is named, by whatever reads it."""

import functools
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from storage import memory_bucket

from dynamicrafter_jax import media, tokenizer
from dynamicrafter_jax.artifact import layout
from dynamicrafter_jax.data.folders import VideoFolder
from dynamicrafter_jax.data.tfds.source import film
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.data.webvid import WebVidTable
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.datasets import open_data
from dynamicrafter_jax.evaluation.footage import inspect, read_frames
from dynamicrafter_jax.evaluation.protocol import Data
from dynamicrafter_jax.metrics.arrays import read_arrays
from dynamicrafter_jax.metrics.clip_embedding import load_clip_embedding
from dynamicrafter_jax.metrics.dreamsim_weights import _read_config
from dynamicrafter_jax.metrics.i3d_weights import load_i3d
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.placeholders import describe_placeholder, describe_pointer
from dynamicrafter_jax.sampling import noise
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.tensors import open_tensors

POINTER = (Path(__file__).parents[1] / "cases/lfs_pointer.npy").read_bytes()
LFS = "a Git LFS pointer, not the file: fetch it with git lfs pull"
PAGE = "a web page, not the file: download the file itself"
ANSWER = "answer of a server, not the file: download the file itself"
S3 = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.mark.parametrize("start, expected", [
    (POINTER, LFS),
    (POINTER.replace(b"\n", b"\r\n"), LFS),
    (b"version https://hawser.github.com/spec/v1\noid sha256:0", LFS),
    (b"/annex/objects/SHA256E-s1--2f.png\n", "a git-annex pointer, not the file: fetch it with"),
    (b"../../.git/annex/objects/1/2/SHA256E-s1--2f/SHA256E-s1--2f", "a git-annex pointer"),
    (b"../../blobs/2f0e", "the text of a link, not the file: copy what it points to"),
    (b"<!DOCTYPE html><html lang='en'>", PAGE),
    (b"\xef\xbb\xbf\r\n <HTML>", PAGE),
    (b"<!-- saved from url=(0020)a -->\n<!doctype HTML>", PAGE),
    (b"<!-- a long licence" + bytes(range(32, 127)) * 50, PAGE),
    (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN"><html>', PAGE),
    ("<html>é".encode("utf-16"), PAGE),
    (gzip.compress(b"<html><body>", mtime=0), PAGE),
    (b"From: <Saved by Blink>\r\nSnapshot-Content-Location: http://a.b/\r\n", PAGE),
    (b"bplist00\xd1\x01\x02_\x10\x0fWebMainResource", PAGE),
    (b"<head><title>\n Sign in &\n out</title>", f"{PAGE} (its title is 'Sign in & out')"),
    (b'<?xml version="1.0"?>\n' + S3, f"the XML {ANSWER} (it says 'AccessDenied')"),
    (S3, f"the XML {ANSWER} (it says 'AccessDenied')"),
    (b'{"error": "Entry not found"}', f"the JSON {ANSWER} (it says 'Entry not found')"),
    (b'{"message":"Not Found","status":"404"}', f"the JSON {ANSWER} (it says 'Not Found')"),
    (b'{"error": {"code": 403}}', f"the JSON {ANSWER} (it says '{{\"code\": 403}}')"),
    (b'{"a": "' + b"b" * 5000 + b'"}', ""),
    (b"Entry not found", f"the {ANSWER} (it says 'Entry not found')"),
    (b"404: Not Found\n", f"the {ANSWER} (it says '404: Not Found')"),
    (b"Invalid username or password.", f"the {ANSWER} (it says 'Invalid username"),
    (b"HTTP/1.1 301 \r\nLocation: a\r\n\r\n", f"the {ANSWER} (it says 'HTTP/1.1 301"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a vector drawing (SVG): export it as PNG"),
    (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "metadata of macOS, not the file"),
    (bytes(4096), "zeros, not the file: download or copy it again"),
    # What may be a file, if a damaged one.
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ""),
    (b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'error': 1}", ""),
    (b"PK\x03\x04 not found", ""),
    (gzip.compress(b"#version: 0.2\ni n\n", mtime=0), ""),
    (b'{"format_version": 1, "sources": [', ""),
    (b"some words", ""),
    (b"[" * 4096, ""),
    (b"not found " * 100, ""),
])  # fmt: skip
def test_what_a_file_is(start: bytes, expected: str):
    found = describe_placeholder(start[:4096])
    assert found.startswith(expected) and bool(found) == bool(expected)


@pytest.mark.parametrize("text", ["Entry not found", "<html>", "../a", "", "a version of it"])
def test_texts_may_say_anything_but_pointers(text: str):
    assert describe_pointer(text.encode()) == ""


def first_frame(path: Path) -> np.ndarray:
    return read_frames(str(path), str(path), [0], 32, 32)


def opened(path: Path) -> None:
    with open_video(str(path), str(path)):
        pass


def opened_tensors(path: Path) -> None:
    with open_tensors(path):
        pass


def converted_model(path: Path) -> None:
    converted.read_description(path.parent)


def converted_file(path: Path) -> None:
    sizes = {"format_version": 1, "dtype": "", "sources": [], "config": {}, "files": {"a.bin": 9}}
    (path.parent / "config.json").write_text(json.dumps(sizes))
    converted.read_description(path.parent)


def exported_file(path: Path) -> None:
    layout.check_files(path.parent, {"files": {path.name: {"bytes": 9, "sha256": "0"}}}, ["a.bin"])


def vocabulary(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer.resources, "files", lambda package: path.parent.parent)
        tokenizer._read_merges()


def strip(path: Path) -> None:
    film(path.name, [path.read_bytes()], 8)


READERS = {
    "picture": ("a.png", functools.partial(media.fit_image, height=32, width=32, fit="crop")),
    "webp": ("a.webp", functools.partial(media.fit_image, height=32, width=32, fit="crop")),
    "image array": ("a.npy", functools.partial(media.fit_image, height=32, width=32, fit="crop")),
    "array": ("a.npy", files.read_array),
    "noise": ("a.npz", lambda path: noise.read_noise(str(path))),
    "features": ("a.npz", functools.partial(read_arrays, names=["a"])),
    "array of frames": ("a.npy", first_frame),
    "frame": ("a.jpg", first_frame),
    "frame in a folder": ("a/0.png", lambda path: inspect(str(path.parent), "a")),
    "animation": ("a.webp", lambda path: inspect(str(path), str(path))),
    "animated PNG": ("a.apng", first_frame),
    "video": ("a.mp4", opened),
    "video to evaluate": ("a.webm", lambda path: inspect(str(path), str(path))),
    "whole video": ("a.mp4", media.read_video),
    "strip of pictures": ("a", strip),
    "safetensors": ("a.safetensors", opened_tensors),
    "checkpoint": ("a.ckpt", opened_tensors),
    "PyTorch": ("a.bin", opened_tensors),
    "I3D": ("i3d_torchscript.pt", load_i3d),
    "DreamSim's LoRA": ("adapter_config.json", lambda path: _read_config(epath.Path(path))),
    "CLIP": ("open_clip_pytorch_model.bin", load_clip_embedding),
    "converted model": ("config.json", converted_model),
    "converted model's file": ("a.bin", converted_file),
    "exported model": ("artifact.json", lambda path: layout.read_description(path.parent)),
    "exported model's file": ("a.bin", exported_file),
    "vocabulary": ("assets/bpe_simple_vocab_16e6.txt.gz", vocabulary),
    "list of MSR-VTT": (
        "test_videodatainfo.json",
        lambda path: open_data(Data("msrvtt", "test", "none"), str(path.parent)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_it_says_so(tmp_path: Path, reader: str):
    name, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    json_answer = b'{"error": "Entry not found"}'
    contents = {POINTER: LFS, b"<!doctype html><html>": PAGE, json_answer: ANSWER, b"": "empty"}
    if "MSR" in reader:
        del contents[json_answer]
    for content, expected in contents.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(path)
        assert expected in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("name, read", [
    ("a.npy", files.read_array),
    ("a.npz", noise.read_noise),
    ("a.png", media.read_picture),
    ("a.mp4", media.read_video),
    ("b.mp4", opened),
])  # fmt: skip
def test_in_a_bucket(monkeypatch: pytest.MonkeyPatch, name: str, read):
    memory_bucket(monkeypatch)
    files.write_bytes(f"gs://bucket/{name}", POINTER)
    with pytest.raises(UserError, match=f"gs://bucket/{name} is {LFS}"):
        read(f"gs://bucket/{name}")


def test_captions(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"404: a page that is not found")
    assert VideoFolder(tmp_path)[0] == ("a.mp4", "404: a page that is not found")
    (tmp_path / "a.txt").write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"a\.txt is {LFS}"):
        VideoFolder(tmp_path)
    data = open_data(Data("folder", "all", "caption"), str(tmp_path))
    with pytest.raises(UserError, match=rf"a\.txt is {LFS}"):
        data.read(0)
    shutil.move(tmp_path / "a.txt", tmp_path / "a.csv")
    with pytest.raises(UserError, match=rf"a\.csv is {LFS}"):
        WebVidTable(tmp_path / "a.csv")
