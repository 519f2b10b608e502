"""TensorBoard's event files, as bytes.

An event file is a series of records, each a length and the bytes of an `Event` message with a
checksum behind both. The few messages that are needed are put together here, so that logging needs
neither TensorFlow nor a writer that knows local files only.
"""

import math
import struct
from collections.abc import Mapping, Sequence

# Field numbers of TensorFlow's event.proto and summary.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_VALUE, _TAG, _SIMPLE_VALUE, _IMAGE = 1, 1, 2, 4
_HEIGHT, _WIDTH, _COLORSPACE, _ENCODED = 1, 2, 3, 4
_STATUS, _STATUS_START = 1, 1
_RGB = 3

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


def version(wall_time: float) -> bytes:
    """The record that every file begins with."""
    return _event(wall_time, 0, _text(_FILE_VERSION, "brain.Event:2"))


def session_start(wall_time: float, step: int) -> bytes:
    """A record that makes readers forget what earlier files hold for `step` and later."""
    return _event(wall_time, step, _message(_SESSION_LOG, _number(_STATUS, _STATUS_START)))


def scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """A record of named numbers."""
    return _summary(
        wall_time,
        step,
        [
            _text(_TAG, name) + _key(_SIMPLE_VALUE, _FLOAT) + _float32(value)
            for name, value in values.items()
        ],
    )


def image(wall_time: float, step: int, name: str, height: int, width: int, encoded: bytes) -> bytes:
    """A record of a picture, `encoded` as PNG, JPEG or (animated) GIF."""
    sides = _number(_HEIGHT, height) + _number(_WIDTH, width) + _number(_COLORSPACE, _RGB)
    return _summary(
        wall_time, step, [_text(_TAG, name) + _message(_IMAGE, sides + _message(_ENCODED, encoded))]
    )


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def _event(wall_time: float, step: int, content: bytes) -> bytes:
    moment = _key(_WALL_TIME, _DOUBLE) + struct.pack("<d", wall_time) + _number(_STEP, step)
    return _record(moment + content)


def _summary(wall_time: float, step: int, values: Sequence[bytes]) -> bytes:
    return _event(
        wall_time, step, _message(_SUMMARY, b"".join(_message(_VALUE, value) for value in values))
    )


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the eighth says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
