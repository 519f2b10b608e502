"""Strips the metadata of pictures, for files in which it is broken but the pixels are whole.

Pillow reads a file's texts, profiles and tags before its pixels, and gives up at the first one that
it can't parse.
"""

import re
import struct
import zlib
from collections.abc import Collection, Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that are needed in addition to the critical ones.
_PNG_KEPT = (b"tRNS", b"eXIf")
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")

_JPEG = b"\xff\xd8"
_JPEG_TABLES, _JPEG_END = b"\xff\xdb", b"\xff\xd9"
_JPEG_SCAN = 0xDA
_JPEG_STANDALONE = (0x01, *range(0xD0, 0xD8))
_JPEG_METADATA = (*range(0xE0, 0xF0), 0xFE)
# Segments that are kept, as colours or orientation depend on them: how they begin, and least size.
_JPEG_KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_KEPT = (b"VP8X", *_WEBP_PIXELS, b"EXIF")
_WEBP_PROFILE = b"ICCP"  # the one chunk of metadata before the pixels
_WEBP_ALPHA, _WEBP_EXIF, _WEBP_ANIMATION = 0x10, 0x08, 0x02

# TIFF 6.0, and its supplements: the tags that say where and what the pixels are.
_TIFF_KEPT = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293),
    *(317, 320, 322, 323, 324, 325, 332, 334, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530),
    *(531, 532),
}

# An item's entry in the index of an AVIF file, up to the type of item.
_AVIF_EXIF = re.compile(rb"(infe[\x02\x03]\0\0[\0\x01].{4,6})Exif", re.DOTALL)


def without_metadata(data: bytes, *, animated: bool = False) -> bytes:
    """Returns a picture's file with nothing but its pixels, and its EXIF if that is whole.

    It handles PNG, JPEG, WebP, TIFF and AVIF; other files, and those that violate their formats,
    are returned unchanged.

    Args:
        data: The contents of the file.
        animated: Whether to keep the frames of an animated PNG in addition to its picture.
    """
    try:
        if data.startswith(_PNG):
            return _bare_png(data, (*_PNG_KEPT, *_PNG_ANIMATION) if animated else _PNG_KEPT)
        if data.startswith(_JPEG):
            return _bare_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _bare_webp(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _bare_tiff(data)
    except (struct.error, IndexError, ValueError):
        return data
    if data[4:8] == b"ftyp":
        return _AVIF_EXIF.sub(rb"\1skip", data)  # orientation is elsewhere (ISO 23008-12)
    return data


def _bare_png(data: bytes, needed: Collection[bytes]) -> bytes:
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IEND":
            break
        is_critical = not kind[0] & 0x20
        if is_critical and end > len(data):
            return data
        is_whole = _is_whole(data, place)
        if is_critical or (kind in needed and is_whole):
            kept.append(data[place:end])
        elif not is_whole:
            end = _next_pixels(data, place, end)
        place = end
    return b"".join(kept) + _png_chunk(b"IEND", b"")


def _is_whole(data: bytes, place: int) -> bool:
    length, kind = struct.unpack_from(">I4s", data, place)
    chunk = data[place : place + 12 + length]
    return len(chunk) == 12 + length and chunk == _png_chunk(kind, chunk[8:-4])


def _next_pixels(data: bytes, place: int, end: int) -> int:
    """Returns where pixels start that a broken chunk claims as its own; else the chunk's end."""
    found = data.find(b"IDAT", place + 8, end + 8)
    return found - 4 if found >= 0 and _is_whole(data, found - 4) else end


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _bare_jpeg(data: bytes) -> bytes:
    kept, place = [_JPEG], len(_JPEG)
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == _JPEG_SCAN:
            return b"".join(kept) + data[place:]
        length = 0 if marker in _JPEG_STANDALONE else struct.unpack_from(">H", data, place + 2)[0]
        end = place + 2 + length
        if marker in _JPEG_METADATA and data[end : end + 1] != b"\xff":
            end = _next_tables(data, place)
        elif marker not in _JPEG_METADATA or _is_kept(marker, data[place + 4 : end]):
            kept.append(data[place:end])
        place = end
    return data


def _next_tables(data: bytes, place: int) -> int:
    """Returns where the tables of the pixels start that a broken segment claims as its own.

    A thumbnail in it has its own end marker, and pixels contain none.
    """
    last = data.rindex(_JPEG_END)
    earlier = data.rfind(_JPEG_END, place, last)
    return data.index(_JPEG_TABLES, max(place + 4, earlier))


def _is_kept(marker: int, content: bytes) -> bool:
    if marker not in _JPEG_KEPT:
        return False
    start, least = _JPEG_KEPT[marker]
    return content.startswith(start) and len(content) >= least


def _bare_webp(data: bytes) -> bytes:
    chunks = [(kind, chunk) for kind, chunk in _riff_chunks(data) if kind in _WEBP_KEPT]
    if chunks and chunks[0][0] == b"VP8X":
        header = bytearray(chunks[0][1])
        # An animation is transparent where frames don't cover its canvas, and may not say so.
        alpha = _WEBP_ALPHA if header[8] & _WEBP_ANIMATION else header[8] & _WEBP_ALPHA
        exif = _WEBP_EXIF if any(kind == b"EXIF" for kind, _ in chunks) else 0
        header[8] = (header[8] & _WEBP_ANIMATION) | alpha | exif
        chunks[0] = (b"VP8X", bytes(header))
    body = b"WEBP" + b"".join(chunk for _, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kinds and whole chunks; if a file is cut short, also the pixels that are left."""
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        if kind == _WEBP_PROFILE and data[end : end + 4] not in _WEBP_PIXELS:
            place = min(found for k in _WEBP_PIXELS if (found := data.find(k, place + 8)) >= 0)
            continue
        chunk = data[place:end]
        if len(chunk) == 8 + length and length % 2:  # the last one's padding is often forgotten
            chunk += b"\0"
        if place + 8 + length <= len(data) or kind != b"EXIF":
            yield kind, chunk
        place = end


def _bare_tiff(data: bytes) -> bytes:
    """Removes entries from the first page's directory; what they point to stays, unread."""
    order = "<" if data.startswith(b"II") else ">"
    (place,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, place)
    end = place + 2 + 12 * count
    entries = [data[start : start + 12] for start in range(place + 2, end, 12)]
    orientation = struct.pack(f"{order}HHI", 274, 3, 1)  # one number of 16 bits
    kept = [
        entry
        for entry in entries
        if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_KEPT or entry.startswith(orientation)
    ]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:place] + directory + data[place + len(directory) :]
