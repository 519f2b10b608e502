"""Tables, folders and data sets of videos: what is found, and what is refused in a clear line."""

import json
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import video_files
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.videos import Video, VideoSource
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.data.webvid import WebVidTable
from dynamicrafter_jax.errors import UserError

HEADER = "videoid,page_dir,name\n"


def put(path: Path, content: str | bytes = b"", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def table(folder: Path, rows: str, header: str = HEADER, encoding: str = "utf-8") -> str:
    (folder / "videos").mkdir(exist_ok=True)
    return os.fspath(put(folder / "train.csv", header + rows, encoding))


def all_of(source: VideoSource) -> list[Video]:
    return [source[i] for i in range(len(source))]


def worker_sees(source: VideoSource) -> list[Video]:
    return all_of(pickle.loads(pickle.dumps(source)))


def test_webvid(tmp_path: Path):
    rows = (
        "007,000001_000050,a man surfing\n"
        '1234567890123456789,d,"a ""red"" car, seen\nfrom above"\r\n'
        "\n"
        " 8 , d , Füße \n"
        "9,,"
    )
    source = open_source(table(tmp_path, rows))
    videos = tmp_path / "videos"
    expected = [
        Video("000001_000050/007.mp4", "a man surfing", f"{videos}/000001_000050/007.mp4"),
        Video(
            "d/1234567890123456789.mp4",
            'a "red" car, seen\nfrom above',
            f"{videos}/d/1234567890123456789.mp4",
        ),
        Video("d/8.mp4", "Füße", f"{videos}/d/8.mp4"),
        Video("9.mp4", "", f"{videos}/9.mp4"),
    ]
    assert all_of(source) == worker_sees(source) == expected
    for index in (-1, 4):
        with pytest.raises(IndexError):
            source[index]


def test_webvid_as_released(tmp_path: Path):
    """More columns, in another order, quoted, with a byte order mark; videos elsewhere."""
    header = '\ufeff"contentUrl",page_dir,"duration",name,videoid\r\n'
    path = table(tmp_path, "https://x/1.mp4,d,PT00H00M20S,dog,0001\r\n", header)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = open_source(path, videos=os.fspath(elsewhere))
    assert all_of(source) == [Video("d/0001.mp4", "dog", f"{elsewhere}/d/0001.mp4")]
    upper = Path(path).rename(tmp_path / "TRAIN.CSV")
    assert len(open_source(os.fspath(upper))) == 1


BAD_TABLES = {
    "video,page_dir,caption\n1,d,dog\n": "has no column videoid and no name: it holds "
    "video, page_dir, caption, but needs videoid, page_dir, name",
    "videoid|page_dir|name\n1|d|dog\n": "it holds videoid|page_dir|name, but needs",
    "\n": "it holds nothing, but needs",
    HEADER: "has no rows after its header",
    HEADER + "\n , \n": "has no rows after its header",
    HEADER + "1,d,dog\n2,d,a dog, a cat\n": "line 3: has 4 cells, but the header has 3",
    HEADER + '1,d,"x\ny"\n2,d\n': "line 4: has 2 cells",
    HEADER + '1,d,"dog\n2,d,cat\n': "line 2: a double quote is opened here and never closed",
    HEADER + '1,d,"dog\n2,d,cat"\n': "line 2: a double quote is opened here, and line 3 is within",
    HEADER + '1,d,"dog" says\n': "line 2: more text follows the double quote that closes a cell",
    HEADER + "1,d,dog\0\n": "line 2: holds a null character",
    HEADER + ",d,dog\n": "line 2: has no videoid",
    HEADER + "../1,d,dog\n": "line 2: names 'd/../1.mp4', which is not a file inside",
    HEADER + "1,d,dog\n1,../../d,dog\n": "line 3: names '../../d/1.mp4'",
    "videoid,page_dir,name,name\n": "line 1: the column 'name' occurs twice",
    HEADER + "1,/etc,dog\n": "names '/etc/1.mp4'",
}


@pytest.mark.parametrize("content", BAD_TABLES)
def test_bad_tables_are_refused(tmp_path: Path, content: str):
    path = table(tmp_path, content, header="")
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)
    assert BAD_TABLES[content] in str(caught.value)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path):
    path = table(tmp_path, "1,d,dog\n2,d,Füße\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"line 3: is not UTF-8: byte 0xfc at position 5; save"):
        open_source(path)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (HEADER + '1,d,"Füße,\nrot"\n', "utf-16"),
        ('VideoID, page dir ,Name,\r\n,,,\r\n 1, d, "Füße,\nrot",\r\n', "utf-8"),
        ('videoid;page_dir;name\n1;d;"Füße,\nrot"\n', "utf-8"),
        ('videoid\tpage_dir\tname\r1\td\t"Füße,\nrot"\r'.replace("\n", "\r"), "utf-8"),
    ],
)
def test_tables_of_other_programs_are_read(tmp_path: Path, text: str, encoding: str):
    source = open_source(table(tmp_path, text, "", encoding))
    place = f"{tmp_path}/videos/d/1.mp4"
    assert all_of(source) == worker_sees(source) == [Video("d/1.mp4", "Füße,\nrot", place)]


def test_missing_things_are_said(tmp_path: Path):
    path = table(tmp_path, "1,d,dog\n")
    (tmp_path / "videos").rmdir()
    put(tmp_path / "videos.txt")
    for source, message in {
        path: "videos is not a folder: set data.videos to the one with the videos",
        f"{tmp_path}/none.csv": "none.csv does not exist: check the path",
        f"{tmp_path}/none": "none does not exist: set data.source to a WebVid .csv, a folder",
        f"{tmp_path}/videos.txt": "videos.txt can't be read as videos: set data.source to",
        "": "no videos are given: set data.source to",
        "https://example.org/a.csv": "https:// is not supported",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(source)
    put(tmp_path / "empty.csv")
    with pytest.raises(UserError, match=r"empty\.csv, line 1: has no column"):
        open_source(f"{tmp_path}/empty.csv")


def test_a_table_that_changes_is_not_misread(tmp_path: Path):
    path = table(tmp_path, "1,d,dog\n2,d,cat\n")
    source = open_source(path)
    table(tmp_path, "10,d,a large dog\n2,d,cat\n")
    with pytest.raises(UserError, match=r"train\.csv was changed after it was opened"):
        source[1]


def test_a_long_table_stays_small(tmp_path: Path):
    rows = "".join(f"{i:09},{i:06},{'a very long caption ' * 20}\n" for i in range(5000))
    listing = WebVidTable(table(tmp_path, rows))
    assert len(pickle.dumps(listing)) < 5000 * 8 + 2000
    assert listing[4321] == ("004321/000004321.mp4", ("a very long caption " * 20).strip())


def test_folder_with_captions_beside_the_videos(tmp_path: Path):
    for name in ("b.mp4", "a/z.MOV", "a/y.webm", "a/b/c.gif", "B.mkv", "d.m4v", "e.avi"):
        put(tmp_path / name)
    for name in (".hidden.mp4", ".cache/x.mp4", "picture.png", "README.txt", "a/.z.txt"):
        put(tmp_path / name)
    put(tmp_path / "b.txt", "\ufeffa dog\n")
    put(tmp_path / "a/z.txt", " Füße ")
    put(tmp_path / "a/y.txt", "\n")  # empty: no caption
    with pytest.warns(UserWarning, match="5 of 7 videos in .* have no caption"):
        source = open_source(os.fspath(tmp_path))
    names = ["B.mkv", "a/b/c.gif", "a/y.webm", "a/z.MOV", "b.mp4", "d.m4v", "e.avi"]
    captions = ["", "", "", "Füße", "a dog", "", ""]
    assert all_of(source) == [
        Video(name, caption, f"{tmp_path}/{name}")
        for name, caption in zip(names, captions, strict=True)
    ]
    assert worker_sees(source) == all_of(source)


def test_folder_with_linked_folders(tmp_path: Path):
    put(tmp_path / "store/a.mp4")
    put(tmp_path / "store/a.txt", "dog")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store/circle").symlink_to(data)
    assert [video.name for video in all_of(open_source(os.fspath(data)))] == ["linked/a.mp4"]


def test_folder_with_a_table_of_captions(tmp_path: Path):
    for name in ("b.mp4", "a/z.mp4", "unlisted.mp4"):
        put(tmp_path / name)
    rows = [
        {"file": "b.mp4", "caption": "a dog", "text": "unused"},
        {"file": "./a/z.mp4", "text": "ein Fuß"},
        {"file": "gone.mp4", "caption": "a cat"},
        {"file": "b.mp4", "fps": 3},
    ]
    lines = [json.dumps(rows[0]), json.dumps(rows[1], ensure_ascii=False), ""]
    put(tmp_path / "captions.jsonl", "\ufeff" + "\n".join([*lines, *map(json.dumps, rows[2:])]))
    with pytest.warns(UserWarning) as caught:
        source = open_source(os.fspath(tmp_path))
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith("1 of 4 videos") and "captions.jsonl lists do not exist" in first
    assert second.startswith("1 of 4 videos") and "have no caption" in second
    expected = [("b.mp4", "a dog"), ("a/z.mp4", "ein Fuß"), ("gone.mp4", "a cat"), ("b.mp4", "")]
    assert [(video.name, video.caption) for video in worker_sees(source)] == expected


BAD_JSONL: dict[str, tuple[str | bytes, str]] = {
    "encoding": ('{"file": "a.mp4", "text": "Fuß"}'.encode("latin-1"), "line 1: is not UTF-8"),
    "json": ('\n{"file": "a.mp4"', "line 2: is not JSON: "),
    "list": ('["a.mp4"]', "line 1: a JSON object is needed"),
    "no file": (
        '{"video": "a.mp4"}',
        'line 1: is not of the form {"file": "a.mp4", "caption": "..."}',
    ),
    "twice": ('{"file": "a.mp4", "file": "b.mp4"}', "line 1: the key 'file' occurs twice"),
    "false": ('{"file": "a.mp4", "caption": false}', "line 1: has the caption False"),
    "endless": ('{"file": "a.mp4", "fps": Infinity}', "line 1: Infinity is not a number in JSON"),
    "number": ('{"file": "a.mp4", "caption": 3}', "line 1: has the caption 3: put text between"),
    "outside": ('{"file": "b/../../a.mp4"}', "names 'b/../../a.mp4', which is not a file inside"),
    "absolute": ('{"file": "/a.mp4"}', "names '/a.mp4'"),
    "nothing": ('{"file": ""}', "names ''"),
    "blank": ("\n\n", "has no videos"),
    "empty": ("", "is empty (0 bytes)"),
}


@pytest.mark.parametrize("fault", BAD_JSONL)
def test_bad_tables_of_captions_are_refused(tmp_path: Path, fault: str):
    put(tmp_path / "a.mp4")
    content, message = BAD_JSONL[fault]
    put(tmp_path / "captions.jsonl", content)
    with pytest.raises(UserError) as caught:
        open_source(os.fspath(tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_are_unclear_are_refused(tmp_path: Path):
    folder = os.fspath(tmp_path)
    put(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"has no videos: none of \.avi, .* in it"):
        open_source(folder)
    put(tmp_path / "a/a.mp4")
    put(tmp_path / "a/a.txt", "Füße".encode("latin-1"))
    with pytest.raises(UserError, match=r"/a/a\.txt is not UTF-8: byte 0xfc at position 1"):
        open_source(folder)
    put(tmp_path / "one.jsonl", '{"file": "a/a.mp4"}')
    with pytest.raises(UserError, match=r"captions in one\.jsonl and in a/a\.txt: keep one kind"):
        open_source(folder)
    put(tmp_path / "two.jsonl")
    with pytest.raises(UserError, match=r"has one\.jsonl, two\.jsonl: keep one file of captions"):
        open_source(folder)


def test_captions_that_break_later_are_said_when_read(tmp_path: Path):
    put(tmp_path / "a.mp4")
    caption = put(tmp_path / "a.txt", "dog")
    source = open_source(os.fspath(tmp_path))
    caption.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        source[0]
    caption.unlink()
    with pytest.raises(UserError, match=r"a\.txt can't be read: No such file"):
        source[0]


def test_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tables, folders and videos may be remote: here a file system in memory stands for one."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    memory = MemoryFileSystem()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: memory)
    video = video_files.write(tmp_path / "a.mp4", video_files.numbered(3)).read_bytes()
    for name, data in {
        "videos/d/1.mp4": video,
        "videos/d/1.txt": b"dog",
        "train.csv": (HEADER + "1,d,a dog\n").encode(),
    }.items():
        memory.pipe_file(f"gs://bucket/{name}", data)
    place = "gs://bucket/videos/d/1.mp4"
    (from_table,) = worker_sees(open_source("gs://bucket/train.csv"))
    assert from_table == Video("d/1.mp4", "a dog", place)
    (from_folder,) = worker_sees(open_source("gs://bucket/videos"))
    assert from_folder == Video("d/1.mp4", "dog", place)
    with open_video(from_table.file, from_table.name) as reader:
        frames = reader.read(range(3), video_files.HEIGHT, video_files.WIDTH)
        assert video_files.numbers(frames) == [0, 1, 2]
    with (
        pytest.raises(UserError, match=r"gs://bucket/none\.mp4 does not exist"),
        open_video("gs://bucket/none.mp4", "none.mp4"),
    ):
        raise AssertionError


class Opened:
    def __init__(self, what: tuple[str, ...]) -> None:
        self.what = what

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Video:
        raise IndexError(index)


def test_data_sets_by_name_are_opened_elsewhere(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("tfds_source")
    monkeypatch.setattr(module, "open_tfds", lambda *what: Opened(what), raising=False)
    monkeypatch.setitem(sys.modules, "dynamicrafter_jax.data.tfds.source", module)
    source = open_source("tfds:ucf101/split_1", split="test")
    assert isinstance(source, Opened) and source.what == ("ucf101/split_1", "test")
