"""Facts about coded pictures from their first bits, read without decoding them."""

import re
from collections.abc import Callable, Iterator

from dynamicrafter_jax.media import orientation
from dynamicrafter_jax.media.orientation import Orientation

FramesOf = Callable[[bytes], int]
"""Returns how many frames a packet shows. Packets must be passed in the order of the file."""


def frames_of(codec: str, header: bytes) -> FramesOf | None:
    """Returns a function that counts a packet's frames; None for codecs that always show one.

    Args:
        codec: The codec's canonical name.
        header: The codec's data in the container's header, or nothing.
    """
    if codec == "mpeg4":
        return Mpeg4(header)
    if codec == "hevc":
        return _Hevc(header)
    return {"vp8": _frames_of_vp8, "vp9": _frames_of_vp9, "av1": _frames_of_av1}.get(codec)


def may_wait(codec: str, header: bytes, packet: bytes) -> bool:
    """Returns whether a packet holds a picture that refers to later ones and is shown before them.

    File headers may claim that there are such pictures when there are none. In H.264 and MPEG-4 the
    pictures themselves say so (H.264 7.3.3, ISO 14496-2 6.2.5); for other codecs, returns True.
    """
    if codec == "mpeg4":
        return any(picture[0] >> 6 == 2 for picture in _pictures(packet))
    if codec != "h264":
        return True
    for unit in _units(codec, header, packet):
        if unit[0] & 31 in (1, 5):
            bits = _Bits(unit[1:17])
            bits.golomb()
            return bits.golomb() % 5 == 1
    return False


def orientation_of(codec: str, header: bytes, packet: bytes) -> Orientation | None:
    """Returns the display orientation in an H.264 or HEVC stream; None if it holds none.

    It stands at the first picture or at every key frame ("display orientation" in the supplemental
    information, H.264 D.2.27 and HEVC D.2.17), and applies to all pictures. If it is the identity,
    the result is None too, and the container's orientation applies.

    Args:
        codec: The codec's canonical name.
        header: The codec's data in the container's header, or nothing.
        packet: The first one that decoding can start at.
    """
    if codec not in ("h264", "hevc"):
        return None
    for unit in _units(codec, header, packet):
        kind, start = (unit[0] & 31, 1) if codec == "h264" else (unit[0] >> 1 & 63, 2)
        if kind == (6 if codec == "h264" else 39):
            for number, message in _messages(unit[start:].replace(b"\0\0\3", b"\0\0")):
                if number == 47 and len(message) > 2 and not message[0] & 0x80:
                    found = _orientation(int.from_bytes(message[:3]))
                    return found if any(found) else None
    return None


def _orientation(bits: int) -> Orientation:
    """Reads 24 bits: cancelled, mirrored left to right, top to bottom, then a rotation."""
    x, y = -1 if bits >> 22 & 1 else 1, -1 if bits >> 21 & 1 else 1
    quarters = round((bits >> 5 & 0xFFFF) / 2**14) % 4  # counterclockwise
    cos, sin = (1, 0, -1, 0)[quarters], (0, 1, 0, -1)[quarters]
    return orientation.from_matrix((cos * x, -sin * x, 0, sin * y, cos * y))


def _units(codec: str, header: bytes, packet: bytes) -> Iterator[bytes]:
    """Yields the NAL units of a packet of H.264 or HEVC, each with its header."""
    # A start code or its length precedes each unit. In AVI, the header may be wrong about which.
    if header[:1] != b"\1" or packet.startswith(b"\0\0\0\1"):
        yield from (unit for unit in packet.split(b"\0\0\1")[1:] if unit)
        return
    place = 4 if codec == "h264" else 21
    size, start = (header[place] & 3) + 1 if len(header) > place else 4, 0
    while (
        0 < (length := int.from_bytes(packet[start : start + size])) <= len(packet) - start - size
    ):
        yield packet[start + size : start + size + length]
        start += size + length


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the messages of a unit of supplemental information, with their type numbers."""
    place = 0
    while place + 2 < len(data):
        numbers = []
        for _ in range(2):  # the kind and the length
            number = 0
            while place < len(data) and data[place] == 255:
                number, place = number + 255, place + 1
            numbers.append(number + (data[place] if place < len(data) else 0))
            place += 1
        kind, length = numbers
        yield kind, data[place : place + length]
        place += length


class _Hevc:
    """Counts the frames of HEVC, where a trimmed file may start with some that can't be decoded.

    They follow the first key frame in the file, are shown before it, and may refer to pictures that
    were cut off ("random access skipped leading" pictures, H.265, 3.131). No decoder shows them.
    """

    def __init__(self, header: bytes) -> None:
        self._header, self._keys, self._is_past_them = header, 0, False

    def __call__(self, packet: bytes) -> int:
        if self._is_past_them:
            return 1
        kinds = (unit[0] >> 1 & 63 for unit in _units("hevc", self._header, packet))
        kind = next((kind for kind in kinds if kind < 32), 0)  # of the first unit with a picture
        self._keys += kind >= 16
        self._is_past_them = self._keys > 1 or (self._keys == 1 and kind < 6)
        return int(kind not in (8, 9))


def _frames_of_vp8(packet: bytes) -> int:
    """Counts by `show_frame` (RFC 6386, 9.1)."""
    return packet[0] >> 4 & 1


def _frames_of_vp9(packet: bytes) -> int:
    """Counts by `show_existing_frame` and `show_frame` in a superframe (VP9, 6.2, Annex B)."""
    starts, last = [0], packet[-1]
    count, size = (last & 7) + 1, (last >> 3 & 3) + 1
    index = packet[-2 - count * size :]
    if last >> 5 == 0b110 and len(index) == 2 + count * size and index[0] == last:
        sizes = [int.from_bytes(index[1 + i * size :][:size], "little") for i in range(count)]
        starts = [sum(sizes[:i]) for i in range(count) if sizes[i]]
    return sum(_shows_vp9(packet[start]) for start in starts if start < len(packet))


def _shows_vp9(first: int) -> bool:
    bits = first << 1 if first & 0b110000 == 0b110000 else first  # profile 3 has a bit more
    return bool(bits & 0b1000 or bits & 0b10)


def _frames_of_av1(packet: bytes) -> int:
    """Counts by `show_existing_frame` and `show_frame` (AV1, 5.9.2); of several layers, one."""
    start = 0
    while start < len(packet):
        first = packet[start]
        start += 2 if first & 4 else 1
        size = len(packet) - start
        if first & 2:
            size, start = _leb128(packet, start)
        kind, unit = first >> 3 & 15, packet[start : start + size]
        if kind == 1 and unit and unit[0] & 8:  # a still picture, which lacks those bits
            return 1
        if kind in (3, 6) and unit and (unit[0] & 0x80 or unit[0] & 0x10):
            return 1
        start += size
    return 0


def _leb128(data: bytes, start: int) -> tuple[int, int]:
    """Reads a number of variable length; returns it and the position after it."""
    number = 0
    for i, byte in enumerate(data[start : start + 8]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, start + i + 1
    return len(data), len(data)


_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(b|Build)\d+p")


class Mpeg4:
    """Counts the pictures of MPEG-4 part 2, whose packets may hold several or empty ones.

    Encoders write an empty picture to repeat the one before (ISO 14496-2, 6.2.5). DivX and Xvid
    pack a picture with one that is shown before it, and mark the stream as packed. The decoder then
    shows the second picture instead of the next packet's first, which waits in turn, or is empty.

    Attributes:
        is_packed: Whether the stream is marked as packed. Then packets show each other's pictures.
    """

    def __init__(self, header: bytes) -> None:
        """Takes the codec's data in the container's header."""
        self.is_packed = self._one_waits = False
        self._time_bits: int | None = None
        self._read(header)

    def __call__(self, packet: bytes) -> int:
        """Returns how many frames the next packet shows."""
        self._read(packet)
        pictures = _pictures(packet)
        one_waited, left = self._one_waits, pictures if self._one_waits else pictures[1:]
        self._one_waits = (
            self.is_packed and bool(left) and not left[0][0] & 0x40 and self._is_coded(left[0])
        )
        return int(one_waited or any(map(self._is_coded, pictures[:1])))

    def _read(self, data: bytes) -> None:
        self._time_bits = self._find_time_bits(data) or self._time_bits
        self.is_packed = self.is_packed or bool(_PACKED.search(data))

    def _is_coded(self, picture: bytes) -> bool:
        bits = _Bits(picture[:32])
        bits.read(2)
        while bits.read(1):  # seconds
            pass
        bits.read(1 + (self._time_bits or 0) + 1)
        return not self._time_bits or bits.read(1) == 1

    @staticmethod
    def _find_time_bits(data: bytes) -> int | None:
        """Returns the bits of `vop_time_increment`, from a video object layer's header, if any."""
        for unit in data.split(b"\0\0\1")[1:]:
            if not unit or unit[0] >> 4 != 2:
                continue
            bits = _Bits(unit[1:41])
            bits.read(9)
            version = bits.read(7) >> 3 if bits.read(1) else 1
            if bits.read(4) == 15:  # the shape of a pixel follows
                bits.read(16)
            if bits.read(1) and bits.read(4) & 1:  # the decoder's buffer follows
                bits.read(79)
            if bits.read(2) == 3 and version != 1:
                bits.read(4)
            bits.read(1)
            return max(1, (bits.read(16) - 1).bit_length())
        return None


def _pictures(packet: bytes) -> list[bytes]:
    """Returns the pictures of a packet of MPEG-4, without their start codes."""
    return [picture for picture in packet.split(b"\0\0\1\xb6")[1:] if picture]


class _Bits:
    """Reads bits from the left; past the end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def golomb(self) -> int:
        """Reads an Exp-Golomb code."""
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
