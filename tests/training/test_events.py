"""The bytes of event files, against published values and TensorBoard's own messages."""

import math
import struct
from typing import Any

import pytest
from tensorboard.compat.proto import event_pb2

from dynamicrafter_jax.training import events

MESSAGES: Any = event_pb2  # its classes are made when it is imported


@pytest.mark.parametrize(
    ("data", "checksum"),
    [  # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksums_are_the_standard_s(data, checksum):
    assert events.crc32c(data) == checksum


def parsed(record: bytes) -> Any:
    (length,) = struct.unpack("<Q", record[:8])
    assert len(record) == 8 + 4 + length + 4
    return MESSAGES.Event.FromString(record[12:-4])


@pytest.mark.parametrize("step", [0, 127, 128, 300, 2**40])
def test_messages_are_tensorboard_s(step):
    event = parsed(events.scalars(1.5e9 + 0.25, step, {"loss": 0.5, "größe": -math.inf}))
    assert (event.wall_time, event.step) == (1.5e9 + 0.25, step)
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert values == {"loss": 0.5, "größe": -math.inf}

    start = parsed(events.session_start(1.0, step))
    assert start.session_log.status == MESSAGES.SessionLog.START and start.step == step
    assert parsed(events.version(2.0)).file_version == "brain.Event:2"

    encoded = bytes(range(256)) * 300
    (value,) = parsed(events.image(3.0, step, "samples/cat", 20, 300, encoded)).summary.value
    picture = value.image
    assert value.tag == "samples/cat" and picture.encoded_image_string == encoded
    assert (picture.height, picture.width, picture.colorspace) == (20, 300, 3)


def test_numbers_beyond_float32_are_infinite():
    event = parsed(events.scalars(0.0, 1, {"high": 1e39, "low": -1e300, "none": math.nan}))
    high, low, none = (value.simple_value for value in event.summary.value)
    assert (high, low) == (math.inf, -math.inf) and math.isnan(none)
