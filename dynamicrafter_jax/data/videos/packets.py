"""The frames of a video: in which packets they are, in which order, and at what times."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from av import Packet as CodedPacket
from av import VideoStream
from av.container import InputContainer

from dynamicrafter_jax.data.videos import bitstreams
from dynamicrafter_jax.media.orientation import Orientation
from dynamicrafter_jax.media.rates import frame_rate

# Broadcasts and the like may restart their clock. The ffmpeg program, too, takes a longer step for
# a restart.
_LONGEST_STEP_SECONDS = 10


class Packet(NamedTuple):
    """The metadata of a packet.

    Attributes:
        pts: When it is shown, in ticks of its stream, if known.
        dts: When it is decoded, likewise.
        is_key: Whether decoding can start here.
        is_cut: Whether an edit list cuts it out.
        frames: How many frames it shows: 0 if others only refer to it.
        place: Its position in the file, in bytes, if known.
    """

    pts: int | None
    dts: int | None
    is_key: bool = False
    is_cut: bool = False
    frames: int = 1
    place: int | None = None

    @property
    def time_in_file(self) -> int:
        """Time to seek to reach the packet, in ticks."""
        return (self.pts or 0) if self.dts is None else self.dts


class PacketRun(NamedTuple):
    """Packets to decode in one go, by number in the file, and the frames wanted from them."""

    first: int
    last: int
    wanted: dict[int, int]  # label of a frame -> its place among those asked for


def usable_packets(
    container: InputContainer, stream: VideoStream
) -> "Iterator[CodedPacket[VideoStream]]":
    """Yields the packets of a stream from the file's current position on, without empty ones.

    The last one is left out too if it is cut off. Others that are marked as damaged may be whole,
    for example where files are joined together.
    """
    damaged: CodedPacket[VideoStream] | None = None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if damaged is not None:
            yield damaged
        damaged = packet if packet.is_corrupt else None
        if damaged is None:
            yield packet


def read_index(
    container: InputContainer, stream: VideoStream
) -> tuple["PacketIndex", Orientation | None]:
    """Reads all packets of a stream, without decoding them.

    Returns:
        The index, and the orientation that the stream asks for (`bitstreams.orientation_of`).
    """
    codec, header = stream.codec_context.codec, stream.codec_context.extradata or b""
    name = codec.canonical_name
    frames_of = bitstreams.frames_of(name, header)
    packets: list[Packet] = []
    orientation, found_key, reorders = None, False, False
    said_to_reorder = bool(stream.codec_context.has_b_frames)
    for packet in usable_packets(container, stream):
        if not packets or (packet.is_keyframe and not found_key):
            orientation = bitstreams.orientation_of(name, header, bytes(packet))
            found_key = packet.is_keyframe
        if said_to_reorder and not reorders:
            reorders = bitstreams.may_wait(name, header, bytes(packet))
        frames = frames_of(bytes(packet)) if frames_of else 1
        packets.append(
            Packet(
                packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, frames, packet.pos
            )
        )
    if container.format.name == "avi":
        # The file stores when frames are decoded, and ffmpeg guesses when they are shown.
        packets = [packet._replace(pts=None) for packet in packets]
    is_packed = isinstance(frames_of, bitstreams.Mpeg4) and frames_of.is_packed
    counted = is_packed or must_count(packets, can_reorder=codec.reorder, reorders=reorders)
    return PacketIndex(packets, counted=counted), orientation


def must_count(packets: Sequence[Packet], *, can_reorder: bool, reorders: bool) -> bool:
    """Returns whether the times of packets can't be trusted to be those of showing their frames.

    Args:
        packets: All packets of a file, in its order.
        can_reorder: Whether the codec allows pictures to be shown in another order than decoded.
        reorders: Whether some of these pictures seem to be.
    """
    shown = [packet for packet in packets if packet.frames]
    times = [packet.pts for packet in shown if packet.pts is not None]
    several = any(packet.frames > 1 for packet in shown)
    if len(set(times)) < len(shown) or several:
        return True
    if len(_parts(shown, math.inf)) > 1:
        return True
    # Files remuxed from AVI give the times of decoding as those of showing.
    if all(before < after for before, after in pairwise(times)):
        return reorders and not all(packet.is_key for packet in packets)
    return not can_reorder


def _parts(packets: Sequence[Packet], longest: float) -> list[list[int]]:
    """Splits the times of packets where the clock restarts.

    Whatever precedes a key frame in the file is shown before it. So key frames reveal that time
    went backwards, or forwards by more than the longest step.
    """
    by_pts = all(packet.pts is not None for packet in packets)
    parts: list[list[int]] = []
    latest = -math.inf
    for packet in packets:
        time = packet.pts if by_pts else packet.dts
        if time is None:
            continue
        if not parts or (packet.is_key and not 0 <= time - latest <= longest):
            parts.append([])
            latest = time
        parts[-1].append(time)
        latest = max(latest, time)
    return parts


def _starts_late(packets: Sequence[Packet]) -> bool:
    """Returns whether decoding pauses after the first packet for frames shown before the second."""
    times = [packet.dts for packet in packets[:3] if packet.pts is None and packet.dts is not None]
    return len(times) == 3 and times[1] - times[0] > times[2] - times[1]


class PacketIndex:
    """The frames of a video, in the order in which they are shown.

    A frame is identified by a label: its time or, if times can't be trusted, its number among the
    frames that leave the decoder when all packets are decoded.

    Attributes:
        packets: All packets, in the order of the file.
        counted: Whether labels are numbers.
        in_file_order: Whether frames are shown in the order of the file.
        first_key: Number of the first packet that decoding can start at.
        num_frames: How many frames are shown. Frames that an edit list cuts out don't count, nor do
            those before the first key frame.
    """

    def __init__(self, packets: Sequence[Packet], *, counted: bool) -> None:
        """Puts frames in order; `must_count` says whether they must be counted."""
        self.packets, self.counted = packets, counted
        self._keys = [
            i for i, p in enumerate(packets) if p.is_key and (counted or p.pts is not None)
        ]
        self.first_key = self._keys[0] if self._keys else 0
        self.in_file_order = False
        if counted:
            self.num_frames = sum(p.frames for p in packets[self.first_key :] if not p.is_cut)
            return
        self._shown = sorted(
            (
                i
                for i, packet in enumerate(packets)
                if packet.frames and not packet.is_cut and self._key(i) is not None
            ),
            key=self._time,
        )
        self.num_frames = len(self._shown)
        self.in_file_order = self._shown == sorted(self._shown)

    def runs(self, indices: Sequence[int]) -> list[PacketRun]:
        """Finds what must be decoded: for each frame, the packets from the last key frame on.

        Raises:
            ValueError: `indices` are not increasing numbers from 0 to num_frames - 1.
        """
        if any(b <= a for a, b in pairwise([-1, *indices, self.num_frames])):
            raise ValueError(f"{indices} are not increasing numbers below {self.num_frames}")
        if self.counted:
            wanted = {index: place for place, index in enumerate(indices)}
            return [PacketRun(self.first_key, len(self.packets) - 1, wanted)] if wanted else []
        runs: list[PacketRun] = []
        for place, index in enumerate(indices):
            position = self._shown[index]
            key = self._key(position)
            assert key is not None
            if runs and key <= runs[-1].last:
                wanted = runs[-1].wanted
                runs[-1] = runs[-1]._replace(last=max(position, runs[-1].last))
            else:
                runs.append(PacketRun(key, position, wanted := {}))
            wanted[self._time(position)] = place
        return runs

    def rate(
        self, time_base: Fraction, told: Fraction | None, *, may_jump: bool
    ) -> Fraction | None:
        """Returns the average number of frames a second; see `frame_rate`.

        The time between two frames does not count if the clock restarts between them.

        Args:
            time_base: Duration of a tick, in seconds.
            told: The rate in the file's header.
            may_jump: Whether long steps in time mean that the clock restarted.
        """
        if self.counted:
            packets = [p for p in self.packets[self.first_key :] if not p.is_cut]
        else:
            packets = [self.packets[i] for i in sorted(self._shown)]
        longest = float(_LONGEST_STEP_SECONDS / time_base) if may_jump else math.inf
        count = self.num_frames
        if _starts_late(packets):
            packets, count = packets[1:], count - 1
        parts = _parts(packets, longest)
        ticks = sum(max(times) - min(times) for times in parts)
        return frame_rate(count - len(parts) + 1, ticks, time_base, told)

    def _time(self, position: int) -> int:
        time = self.packets[position].pts
        assert time is not None
        return time

    def _key(self, position: int) -> int | None:
        """Returns the last key frame decoded and shown no later than a packet, or None."""
        time = self._time(position)
        before = bisect_right(self._keys, position)
        # A frame that is shown before a key frame but follows it in the file needs an earlier one.
        while before and self._time(self._keys[before - 1]) > time:
            before -= 1
        return self._keys[before - 1] if before else None
