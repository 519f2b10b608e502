"""The first bits of coded pictures, written here by the letter of their standards."""

import numpy as np
import pytest

from dynamicrafter_jax.data.videos.bitstreams import frames_of, may_wait, orientation_of
from dynamicrafter_jax.media.orientation import Orientation

# VP9, 6.2: marker, profile, show_existing_frame, frame_type, show_frame, error_resilient_mode.
SHOWN, HIDDEN = bytes([0b10_00_0_0_1_0]), bytes([0b10_00_0_1_0_0])
EXISTING = bytes([0b10_00_1_000])


def superframe(*frames: bytes) -> bytes:
    """VP9, Annex B, with sizes of two bytes."""
    ends = bytes([0b110_01_000 | len(frames) - 1])
    sizes = b"".join(len(frame).to_bytes(2, "little") for frame in frames)
    return b"".join(frames) + ends + sizes + ends


def unit(kind: int, data: bytes) -> bytes:
    """A unit of AV1 with its size (5.3.2)."""
    return bytes([kind << 3 | 2, len(data)]) + data


VP9 = [
    (SHOWN + b"abc", 1),
    (HIDDEN + b"abc", 0),
    (EXISTING, 1),
    (bytes([0b10_11_0_0_1_0]) + b"a", 0),  # profile 3 has a bit more
    (bytes([0b10_11_0_0_0_1]) + b"a", 1),
    (bytes([0b10_11_0_1_0_0]) + b"a", 1),
    (superframe(HIDDEN + b"abc", SHOWN + b"ab"), 1),
    (superframe(SHOWN + b"abc", SHOWN + b"ab"), 2),
    (superframe(HIDDEN + b"abc"), 0),
]
AV1 = [
    (unit(2, b"") + unit(6, b"\x10abc"), 1),
    (unit(2, b"") + unit(6, b"\x00abc"), 0),
    (unit(6, b"\x00abc") + unit(3, b"\x80"), 1),
    (unit(6, b"\x10abc") + unit(6, b"\x10abc"), 1),  # two layers
    (unit(1, b"\x18") + unit(6, b"\x00abc"), 1),  # a still picture
    (unit(1, b"\x00") + unit(6, b"\x30" + bytes(100)), 1),
    (bytes([6 << 3]) + b"\x10abc", 1),  # without its size, it is the last
    (bytes([2 << 3 | 4, 0]), 0),
    (b"", 0),
]
VP8 = [(b"\x10\x02", 1), (b"\x11", 1), (b"\x01", 0)]


@pytest.mark.parametrize("codec, packets", {"vp8": VP8, "vp9": VP9, "av1": AV1}.items())
def test_packets_say_how_many_frames_they_show(codec: str, packets: list[tuple[bytes, int]]):
    count = frames_of(codec, b"")
    assert count is not None
    assert [count(packet) for packet, _ in packets] == [frames for _, frames in packets]


def test_hevc_that_was_cut_does_not_show_what_it_can_not_decode():
    """H.265, table 7-1: a clean random access picture and those that lead it, decodable or not."""
    kinds = [(21, 1), (9, 0), (8, 0), (7, 1), (1, 1), (0, 1), (21, 1), (9, 1), (8, 1), (1, 1)]
    count, counted = frames_of("hevc", b""), []
    assert count is not None
    for kind, _ in kinds:
        counted.append(count(b"\0\0\0\1\x46\1\x10" + b"\0\0\1" + bytes([kind << 1, 1, 0xAF])))
    assert counted == [shown for _, shown in kinds]
    with_lengths = [b"\0\0\0\3" + bytes([kind << 1, 1, 0xAF]) for kind, _ in kinds]
    count = frames_of("hevc", b"\1" + bytes(20) + b"\x0f" + bytes(5))
    assert count is not None
    assert [count(packet) for packet in with_lengths] == counted


def test_of_other_codecs_packets_are_frames():
    assert frames_of("h264", b"") is None and frames_of("gif", b"") is None


def bits(text: str) -> bytes:
    """Bits as bytes, filled up with zeros."""
    text = text.replace(" ", "")
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


# ISO 14496-2, 6.2.3: a layer of 1 / 30 s, plain, and with all that may be said before that.
PLAIN = b"\0\0\1\x20" + bits("0 00000001 0 0001 0 00 1 0000000000011110 1")
FULL = b"\0\0\1\x20" + bits(
    f"0 00000001 1 0010 001 1111 00000001 00000001 1 01 0 1 {'1' * 79} 00 1 0000000000011110 1"
)


def picture(kind: str, is_coded: bool, seconds: int = 0) -> bytes:
    """A picture at 7 / 30 s (6.2.5)."""
    coded = "1" if is_coded else "0"
    return b"\0\0\1\xb6" + bits(
        f"{kind} {'1' * seconds} 0 1 00111 1 {coded} 0110 10101010 01010101"
    )


INTRA, PREDICTED, BIDIRECTIONAL = "00", "01", "10"


@pytest.mark.parametrize("header", [PLAIN, FULL])
def test_empty_pictures_are_not_shown(header: bytes):
    for count, first in ((frames_of("mpeg4", header), b""), (frames_of("mpeg4", b""), header)):
        assert count is not None
        assert count(first + picture(INTRA, True)) == 1
        assert count(picture(PREDICTED, False)) == 0
        assert count(picture(PREDICTED, True, seconds=3)) == 1
        assert count(picture(PREDICTED, False, seconds=3)) == 0


def test_packed_pictures_are_shown_with_the_next_packet():
    says_so = PLAIN + b"\0\0\1\xb2DivX503b1393p"
    p, b, empty = picture(PREDICTED, True), picture(BIDIRECTIONAL, True), picture(PREDICTED, False)
    packets = [picture(INTRA, True), p + b, empty, p, empty, p + b, b, empty, p + b]
    count = frames_of("mpeg4", says_so)
    assert count is not None
    assert [count(packet) for packet in packets] == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    count = frames_of("mpeg4", PLAIN)  # without a word about it, the second one is lost
    assert count is not None
    assert [count(packet) for packet in packets] == [1, 1, 0, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("codec", ["vp8", "vp9", "av1", "mpeg4", "h264", "hevc"])
def test_damaged_packets_do_no_harm(codec: str):
    rng = np.random.default_rng(0)
    starts = [b"", b"\0\0\1", b"\0\0\0\1\6", b"\0\0\1\xb6", b"\0\0\0\5\x4e", b"\0\0\1\x20"]
    for header in (b"", b"\1", b"\1\x64\0\x0a\xff", b"\1" + bytes(20) + b"\x0f"):
        count = frames_of(codec, header)
        for length in range(1, 80):
            packet = (starts[length % len(starts)] + rng.bytes(length))[:length]
            assert count is None or count(packet) in range(9)
            assert may_wait(codec, header, packet) in (True, False)
            orientation_of(codec, header, packet)


def test_pictures_tell_whether_they_wait_for_later_ones():
    """H.264: first_mb_in_slice and slice_type, in the code of Golomb (7.3.3, 9.1)."""

    def slice_of(first: str, kind: str, unit: bytes = b"\x41") -> bytes:
        return b"\0\0\1\x67ab" + b"\0\0\1" + unit + bits(f"{first} {kind} 1")

    p, b, i, all_b = "1", "010", "011", "00111"  # 0, 1, 2, 6
    kinds = [(p, False), (b, True), (i, False), (all_b, True)]
    for first in ("1", "00110"):  # 0 and 5
        for kind, waits in kinds:
            assert may_wait("h264", b"", slice_of(first, kind)) is waits
    assert not may_wait("h264", b"", b"\0\0\1\x67ab")
    assert not may_wait("h264", b"", b"\0\0\1\x41" + bytes(4))
    for kind in (INTRA, PREDICTED, BIDIRECTIONAL):
        assert may_wait("mpeg4", b"", PLAIN + picture(kind, True)) is (kind == BIDIRECTIONAL)
    assert may_wait("hevc", b"", b"")


def test_a_stream_says_how_it_is_to_be_shown():
    text = b"\x05\x02ab"  # of another kind, first
    # Not cancelled, mirrored left to right, not top to bottom, a quarter turn, and the rest.
    message = b"\x2f\x03" + bits("0 1 0 0100000000000000 010 10")
    transposed = Orientation(True)
    start = b"\0\0\0\1"
    picture = b"\x65abc"
    h264 = start + b"\x67abc" + start + b"\6" + text + message + b"\x80" + start + picture
    assert orientation_of("h264", b"", h264) == transposed
    sei = b"\6" + text + message + b"\x80"
    with_lengths = len(sei).to_bytes(4) + sei + len(picture).to_bytes(4) + picture
    assert orientation_of("h264", b"\1\x64\0\x0a\xff", with_lengths) == transposed
    assert orientation_of("hevc", b"", start + b"\x4e\1" + text + message + b"\x80") == transposed
    assert orientation_of("vp9", b"", h264) is None
    cancelled = b"\x2f\x03" + bits("1 1 0 0100000000000000 010 10")
    assert orientation_of("h264", b"", start + b"\6" + cancelled + b"\x80") is None
    nothing = b"\x2f\x03" + bits("0 0 0 0000000000000000 010 10").replace(b"\0\0", b"\0\0\3")
    assert orientation_of("h264", b"", start + b"\6" + nothing + b"\x80") is None
    for end in range(len(with_lengths)):  # cut off anywhere, it says nothing or the same
        assert orientation_of("h264", b"\1\x64\0\x0a\xff", with_lengths[:end]) in (None, transposed)
