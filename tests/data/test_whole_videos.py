"""All frames of videos: in order, with damage where it is, and no thread left over."""

import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import caches
import numpy as np
import pytest
import video_files

from dynamicrafter_jax.data.cache import whole_videos
from dynamicrafter_jax.data.cache.format import Entry
from dynamicrafter_jax.data.cache.whole_videos import decode_videos, every_frame
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.videos.decoding import VideoReader, open_video
from dynamicrafter_jax.errors import UserError

H, W = 16, 24


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return caches.make_videos(tmp_path_factory.mktemp("whole") / "videos")


@pytest.mark.parametrize("threads", [1, 3])
def test_frames_of_all_videos_come_in_order(
    videos: str, threads: int, monkeypatch: pytest.MonkeyPatch
):
    """However few frames may wait."""
    monkeypatch.setattr(whole_videos, "_BYTES_AHEAD", 0)
    source = open_source(videos)
    found = list(decode_videos(source, [1, 5, 0, 2], H, W, threads=threads))
    entries = [entry for entry in found if isinstance(entry, Entry)]
    assert [(e.name, e.frames, e.decoded) for e in entries] == [
        ("b.mp4", 25, 25), ("f.mp4", 0, 0), ("a.mp4", 12, 12), ("c.mp4", 2, 2)
    ]  # fmt: skip
    assert entries[1].problem.startswith("f.mp4 is truncated or not a video")
    assert [entry.caption for entry in entries[1:3]] == ["nothing", "pattern a moves"]
    assert entries[0].file == os.path.join(videos, "b.mp4") and entries[0].fps == 25
    frames = [np.asarray(frame) for frame in found if not isinstance(frame, Entry)]
    for name, part in (("b", frames[:25]), ("a", frames[25:37]), ("c", frames[37:])):
        with open_video(f"{videos}/{name}.mp4", name) as reader:
            wanted = reader.read(range(reader.num_frames), H, W)
        np.testing.assert_array_equal(np.stack(part), wanted)


DAMAGE = {"one": [13], "two_parts": [4, 33], "all_of_a_part": range(11, 20), "to_the_end": [31]}


@pytest.mark.parametrize("packets", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_frame_counts_as_whole_if_it_can_be_decoded_by_itself(tmp_path: Path, name: str, packets):
    options = "x264-params=keyint=10:min-keyint=10:scenecut=0"
    whole = video_files.write(tmp_path / name, video_files.moving(40), options=options)
    damaged = tmp_path / f"damaged_{name}"
    caches.damage(whole, damaged, packets)
    with open_video(os.fspath(damaged), name) as reader:
        found = list(every_frame(reader, H, W))
        assert len(found) == reader.num_frames == 40
        for number, frame in enumerate(found):
            if isinstance(frame, UserError):
                assert str(frame).startswith(name)
                with pytest.raises(UserError):
                    reader.read([number], H, W)
            else:
                np.testing.assert_array_equal(frame, reader.read([number], H, W)[0])
        assert 0 < sum(isinstance(frame, UserError) for frame in found) < 40


class Damaged(VideoReader):
    """Forty frames that hold their numbers, some of which can't be decoded."""

    def __init__(self, damaged: range) -> None:
        self.num_frames, self._damaged = 40, damaged

    def frames(
        self, indices: Sequence[int], height: int, width: int
    ) -> Generator[np.ndarray, None, None]:
        for number in indices:
            if number in self._damaged:
                raise UserError(f"number {number} can't be decoded")
            yield np.full((height, width, 3), number, np.uint8)


@pytest.mark.parametrize("start", [0, 13])
def test_damage_ends_at_the_first_frame_after_it(start: int):
    for end in range(start + 1, 41):
        found = every_frame(Damaged(range(start, end)), 1, 1)
        numbers = [None if isinstance(one, UserError) else int(one[0, 0, 0]) for one in found]
        assert numbers == [*range(start), *[None] * (end - start), *range(end, 40)]


def test_threads_end_when_nobody_wants_more(videos: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(whole_videos, "_BYTES_AHEAD", 0)
    decoded = decode_videos(open_source(videos), range(7), H, W, threads=2)
    next(decoded)
    decoded.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_defect_is_raised_and_not_taken_for_a_broken_video(
    videos: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(whole_videos, "open_video", fail)
    with pytest.raises(MemoryError, match="no memory"):
        list(decode_videos(open_source(videos), range(2), H, W, threads=2))
