"""Latent caches against the videos they are made of: what is stored, resumed, shared, refused."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import caches
import numpy as np
import pytest
import release_files
import storage
from caches import SETTINGS, Averages
from data.listed import Listed
from etils import epath
from fake_gcs import Bucket, Stored, serve
from fsspec.implementations.memory import MemoryFile

from dynamicrafter_jax.data.cache import shards
from dynamicrafter_jax.data.cache.clips import CachedExamples
from dynamicrafter_jax.data.cache.format import (
    DTYPES,
    FORMAT_VERSION,
    check_networks,
    is_cache,
    read_index,
)
from dynamicrafter_jax.data.cache.shards import Shards
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.loader import batches
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*its place is kept")
KINDS = [(), ("text",), ("vision",), ("text", "vision")]
SEED = 3
SAMPLES = range(35)  # five epochs


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return caches.make_videos(tmp_path_factory.mktemp("cached") / "videos")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, videos: str) -> Path:
    """A cache of everything, not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    caches.make(folder, videos, ("text", "vision"))
    return folder


@pytest.fixture
def copied(tmp_path: Path, made: Path) -> Path:
    """One that may be."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kinds", "frames"), [*((kinds, None) for kinds in KINDS), ((), 2), (("vision",), 2)]
)
def test_samples_are_those_of_the_videos(
    tmp_path: Path, videos: str, kinds: tuple[str, ...], frames: int | None
):
    networks = caches.make(tmp_path / "cache", videos, kinds)
    settings = dataclasses.replace(SETTINGS, frames=frames)
    cached = CachedExamples(tmp_path / "cache", settings, SEED)
    plain = VideoExamples(open_source(videos), settings, SEED)
    assert len(cached) == len(plain) == 7
    seen = set()
    for index in SAMPLES:
        ours, theirs = cached(index), plain(index)
        wanted = {name: theirs[name] for name in ("index", "item", "weight", "fs", "frame")}
        wanted |= {name: theirs[name] for name in ("keep_image", "ends", "problem")}
        wanted |= {"places": theirs["places"]} if frames else {}
        video, usable = theirs["video"], bool(theirs["weight"])
        wanted["moments"] = networks.moments(video) * usable
        if "text" in kinds:
            caption = plain._source[int(theirs["item"])].caption
            empty = np.array_equal(theirs["ids"][:2], [49406, 49407])
            wanted["text"] = networks.captions(["" if empty else caption])[0] * usable
        else:
            wanted["ids"] = theirs["ids"]
        picture = video[int(theirs["frame"])]
        if "vision" in kinds:
            tokens = networks.vision(picture[None])[0]
            wanted["vision"] = tokens * theirs["keep_image"]
        else:
            wanted["image"] = picture
        assert ours.keys() == wanted.keys()
        for name, values in wanted.items():
            assert ours[name].dtype == values.dtype, name
            np.testing.assert_array_equal(ours[name], values, name)
        seen.add((usable, bool(theirs["keep_image"])))
    assert len(seen) == 3


def test_a_clip_that_touches_a_damaged_frame_counts_for_nothing(made: Path, videos: str):
    cached = CachedExamples(made, SETTINGS, SEED)
    plain = VideoExamples(open_source(videos), SETTINGS, SEED)
    damaged = [cached(i) for i in range(400) if cached(i)["item"] == 6]
    assert {float(example["weight"]) for example in damaged} == {0, 1}
    for ours in damaged:
        theirs = plain(int(ours["index"]))
        assert ours["weight"] == theirs["weight"] and ours["problem"] == theirs["problem"]


@pytest.mark.parametrize(("dtype", "workers"), [("float32", 0), ("bfloat16", 1), ("float16", 0)])
def test_numbers_are_rounded_once_and_reach_batches_as_they_are(
    tmp_path: Path, videos: str, dtype: str, workers: int
):
    """Through a worker process, too, which has no JAX."""
    caches.make(tmp_path / "cache", videos, ("text", "vision"), dtype=dtype)
    cached = CachedExamples(tmp_path / "cache", SETTINGS, SEED)
    (batch,) = batches(cached, batch_size=6, rows=range(6), stop=1, workers=workers)
    plain, exact = VideoExamples(open_source(videos), SETTINGS, SEED), Averages()
    for row in range(6):
        video = plain(row)["video"]
        wanted = exact.moments(video).astype(DTYPES[dtype]) * DTYPES[dtype].type(video.any())
        for name, values in cached(row).items():
            assert batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name][row], values, name)
        np.testing.assert_array_equal(batch["moments"][row], wanted)
    assert batch["moments"].dtype == batch["vision"].dtype == DTYPES[dtype]


@pytest.mark.parametrize("batches_before", range(0, 17, 4))
def test_an_interrupted_cache_is_gone_on_with(
    tmp_path: Path, made: Path, videos: str, batches_before: int
):
    folder, kinds = tmp_path / "cache", ("text", "vision")
    killed = Averages(fails_after=batches_before)
    with pytest.raises(KeyboardInterrupt):
        caches.make(folder, videos, kinds, encoder=killed)
    whole = len(list(folder.glob("index-*")))
    # A process that was killed outright leaves files that nobody knows the end of.
    (folder / f".moments-{whole:05d}.array_record.1f2e3d4c.tmp").write_bytes(b"half of it")
    (folder / f"text-{whole:05d}.array_record").write_bytes(b"of another time")
    with pytest.raises(UserError, match=rf"unfinished cache \({whole} of 4 shards\): run the com"):
        CachedExamples(folder, SETTINGS, SEED)
    again = caches.make(folder, videos, kinds)
    assert caches.contents(folder) == caches.contents(made)
    frames = [37, 5, 7, 0, 24][whole:]  # by shard; the first has 12 + 25
    assert len(again.batches) == -(-sum(frames) // again.batch_size)
    assert caches.make(folder, videos, kinds).batches == []


def test_hosts_that_share_the_shards_make_the_same_cache(tmp_path: Path, made: Path, videos: str):
    folder, kinds = tmp_path / "cache", ("text", "vision")
    caches.make(folder, videos, kinds, shards=[1, 3], threads=1)
    caches.make(folder, videos, kinds, shards=[0, 2], threads=3)
    caches.make(folder, videos, kinds)
    assert caches.contents(folder) == caches.contents(made)


def test_a_shard_that_lost_a_file_is_written_again(copied: Path, made: Path, videos: str):
    (copied / "moments-00001.array_record").unlink()
    os.truncate(copied / "text-00002.array_record", 1000)
    (copied / "index-00003.json").write_text("{")
    assert len(caches.make(copied, videos, ("text", "vision")).batches) == 9
    assert caches.contents(copied) == caches.contents(made)


def test_pictures_come_from_the_videos_wherever_they_are_now(tmp_path: Path, videos: str):
    before = Path(shutil.copytree(videos, tmp_path / "before"))
    caches.make(tmp_path / "cache", os.fspath(before))
    wanted = [CachedExamples(tmp_path / "cache", SETTINGS, SEED)(i) for i in range(14)]
    after = before.rename(tmp_path / "after")
    lost = CachedExamples(tmp_path / "cache", SETTINGS, SEED)
    moved = CachedExamples(tmp_path / "cache", SETTINGS, SEED, videos=os.fspath(after))
    for index, example in enumerate(wanted):
        assert lost(index)["weight"] == 0
        assert example["weight"] == 0 or b"No such file" in bytes(lost(index)["problem"])
        for name, values in moved(index).items():
            np.testing.assert_array_equal(values, example[name])


def test_pictures_come_from_the_bytes_that_a_source_has(
    tmp_path: Path, videos: str, monkeypatch: pytest.MonkeyPatch
):
    plain = open_source(videos)
    of_paths = [plain[i] for i in range(len(plain))]
    source = Listed([v._replace(file=Path(videos, v.name).read_bytes()) for v in of_paths])
    for module in ("caches", "dynamicrafter_jax.data.cache.clips"):
        monkeypatch.setattr(f"{module}.open_source", lambda *_, **__: source)
    caches.make(tmp_path / "cache", "tfds:videos")
    cached = CachedExamples(tmp_path / "cache", SETTINGS, SEED)
    wanted = VideoExamples(source, SETTINGS, SEED)
    for index in range(7):
        example = wanted(index)
        picture = example["video"][int(example["frame"])]
        np.testing.assert_array_equal(cached(index)["image"], picture)


def test_vision_tokens_need_no_videos(tmp_path: Path, videos: str):
    before = Path(shutil.copytree(videos, tmp_path / "before"))
    caches.make(tmp_path / "cache", os.fspath(before), ("vision",))
    shutil.rmtree(before)
    cached = CachedExamples(tmp_path / "cache", SETTINGS, SEED)
    assert sum(cached(i)["weight"] for i in range(7)) >= 3


def test_samples_travel_by_pickle(made: Path):
    cached = CachedExamples(made, SETTINGS, SEED)
    wanted = cached(5)
    again = pickle.loads(pickle.dumps(cached))(5)
    assert all(np.array_equal(again[name], values) for name, values in wanted.items())


def test_few_shards_are_open_at_once(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dynamicrafter_jax.data.cache.shards._OPEN_SHARDS", 1)
    opened = len(os.listdir("/proc/self/fd"))
    one, many = (CachedExamples(made, SETTINGS, SEED) for _ in range(2))
    for index in SAMPLES:
        assert one(index)["weight"] == many(index)["weight"]
    assert len(os.listdir("/proc/self/fd")) <= opened + 6


def test_shards_stay_open_by_their_last_use(made: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 2)
    monkeypatch.setattr(
        shards, "read_index", lambda folder, n: opened.append(n) or read_index(folder, n)
    )
    cache = Shards(made)
    for number in (0, 1, 0, 2, 0, 1):
        assert cache.video(number, 0) == read_index(epath.Path(made), number).videos[0]
    assert opened == [0, 1, 2, 1]  # the first was in use throughout


def edit(name: str, **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(values))

    return change


def spoil(folder: Path) -> None:
    """Changes a byte of each frame of the first video."""
    name = "moments-00000.array_record"
    data = bytearray((folder / name).read_bytes())
    for record in Shards(folder).frames("moments", 0, 0, range(12)):
        data[data.index(record) + 5] ^= 1
    (folder / name).write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (
        lambda folder: shutil.rmtree(folder),
        "is not a latent cache: it has no cache",
    ),
    "lost": (
        lambda folder: (folder / "vision-00001.array_record").unlink(),
        r"vision-00001\.array_record is missing: copy the cache again, or run the command",
    ),
    "cut": (
        lambda folder: os.truncate(folder / "moments-00002.array_record", 65536),
        r"moments-00002\.array_record is cut short or changed: copy",
    ),
    "newer": (
        edit("cache.json", format_version=FORMAT_VERSION + 1),
        r"of format version 2, newer than this package reads \(1\): upgrade dynamicrafter-jax",
    ),
    "no JSON": (
        lambda folder: (folder / "cache.json").write_text("{"),
        r"cache\.json is damaged: copy the cache again",
    ),
    "half of it": (
        lambda folder: (folder / "cache.json").write_text('{"format_version": 1}'),
        r"cache\.json is damaged: copy the cache again",
    ),
    "index": (
        lambda folder: (folder / "index-00000.json").write_bytes(
            (folder / "index-00000.json").read_bytes().replace(b'"fps"', b'"fpt"')
        ),
        r"index-00000\.json is damaged: copy the cache again",
    ),
    "record": (
        spoil,
        r"moments-00000\.array_record can't be read \(Corrupted .*\): if it is damaged, remove "
        r"index-00000\.json next to it and run the command that makes the cache again",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_refused(copied: Path, name: str):
    damage, message = DAMAGE[name]
    damage(copied)
    with pytest.raises(UserError, match=message) as caught:
        cached = CachedExamples(copied, SETTINGS, SEED)
        for index in SAMPLES:
            cached(index)
    assert "\n" not in str(caught.value)


def test_a_cache_of_another_size_or_network_is_refused(made: Path):
    other = dataclasses.replace(SETTINGS, width=32)
    with pytest.raises(UserError, match=r"made with sampling\.width = 24, but here it is 32: set"):
        CachedExamples(made, other, SEED)
    config = release_files.micro()
    config.vae.ch = 64
    recipe = CachedExamples(made, SETTINGS, SEED).recipe
    with pytest.raises(UserError, match=r"made with vae\.ch = 32, but here it is 64: give the con"):
        check_networks(made, recipe, config)
    with pytest.raises(UserError, match=r"train\.seed is -1"):
        CachedExamples(made, SETTINGS, -1)
    with pytest.raises(UserError, match=r"can't be read from s3://: copy it to this machine"):
        Shards("s3://bucket/cache")


def test_a_config_may_name_a_cache(tmp_path: Path, videos: str):
    config = release_files.micro()
    vae = json.loads(config.vae.to_json())
    caches.make(tmp_path / "cache", videos, networks={"vae": vae})
    assert is_cache(os.fspath(tmp_path / "cache")) and not is_cache(videos)
    assert isinstance(open_examples(config, os.fspath(tmp_path / "cache"), 0), CachedExamples)
    assert isinstance(open_examples(config, videos, 0), VideoExamples)
    config.vae.ch_mult = (1, 1, 1)
    with pytest.raises(UserError, match=r"vae\.ch_mult = \[1, 1\], but here it is \[1, 1, 1\]"):
        open_examples(config, os.fspath(tmp_path / "cache"), 0)


def test_another_cache_is_not_mixed_in(tmp_path: Path, copied: Path, videos: str):
    kinds = ("text", "vision")
    with pytest.raises(UserError, match=r"made with dtype float32 and not float16: give another"):
        caches.make(copied, videos, kinds, dtype="float16")
    with pytest.raises(UserError, match=r"made with shapes\.vision \[5, 4\] and not None: give"):
        caches.make(copied, videos, ("text",))
    caches.make(copied, videos, kinds, source={"source": "elsewhere", "split": "train"})
    others = Path(shutil.copytree(videos, tmp_path / "others"))
    for extension in (".mp4", ".txt"):
        (others / f"a{extension}").rename(others / f"aa{extension}")
    with pytest.raises(UserError, match=r"index-00000\.json has a\.mp4 where the source now has"):
        caches.make(copied, os.fspath(others), kinds)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"has other files in it \(thesis\.tex\): give a new"):
        caches.make(tmp_path / "mine", videos)


def test_a_full_disk_leaves_whole_shards(tmp_path: Path, videos: str):
    def write() -> None:
        caches.make(tmp_path / "cache", videos, ("vision",))

    with storage.full_disk(50_000), pytest.raises(UserError, match=r"can't be written: .*too larg"):
        write()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cache_recipe.json"]
    write()


def test_a_cache_may_be_written_to_a_bucket(
    tmp_path: Path, made: Path, videos: str, monkeypatch: pytest.MonkeyPatch
):
    stored = storage.memory_bucket(monkeypatch)
    caches.make("gs://bucket/cache", videos, ("text", "vision"), shards=[0])
    caches.make("gs://bucket/cache", videos, ("text", "vision"))
    folder = epath.Path("gs://bucket/cache")
    assert {Path(name).name: (folder / Path(name).name).read_bytes() for name in stored} == (
        caches.contents(made)
    )


def test_a_cache_in_a_bucket_is_read_where_it_is(made: Path, monkeypatch: pytest.MonkeyPatch):
    """By ArrayRecord's own client, to a server that speaks the service's interface."""
    stored = storage.memory_bucket(monkeypatch)
    for name, data in caches.contents(made).items():
        (epath.Path("gs://bucket/cache") / name).write_bytes(data)
    bucket = Bucket()
    bucket.objects = {
        ("bucket", f"cache/{Path(name).name}"): Stored(file.getvalue(), 1)
        for name, file in cast(dict[str, MemoryFile], stored).items()
    }
    local = CachedExamples(made, SETTINGS, SEED)
    with serve(bucket) as address:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        remote = CachedExamples("gs://bucket/cache", SETTINGS, SEED)
        for index in range(7):
            for name, values in remote(index).items():
                np.testing.assert_array_equal(values, local(index)[name], name)
        del bucket.objects["bucket", "cache/moments-00000.array_record"]
        lost = CachedExamples("gs://bucket/cache", SETTINGS, SEED)
        with pytest.raises(UserError, match=r"gs://bucket/cache/moments-00000.* can't be read"):
            for index in range(7):
                lost(index)
