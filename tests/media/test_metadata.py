"""Metadata that is broken leaves the pixels whole; a file whose pixels are broken is refused."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from dynamicrafter_jax import media
from dynamicrafter_jax.data.tfds.source import film
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.footage import inspect, read_frames

CASES = Path(__file__).parent.parent / "cases"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
TURNED = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 3, 0, 0)  # by half a turn
TIFF_TAIL = b"II*\0\x08\0\0\0\x05\0\x12\x01\x03"  # of EXIF that is cut short


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG with chunks before and after its pixels."""
    whole = encoded("PNG")
    start, end = whole.index(b"IDAT") - 4, len(whole) - 12
    return whole[:start] + before + whole[start:end] + after + whole[end:]


PNGS = {
    "EXIF": png(png_chunk(b"eXIf", b"Iee")),
    "EXIF, cut": png(png_chunk(b"eXIf", TIFF_TAIL)),
    "EXIF after the pixels": png(after=png_chunk(b"eXIf", TIFF_TAIL)),
    "EXIF's checksum": png(png_chunk(b"eXIf", TURNED, checksum=1)),
    "raw profile of EXIF": png(png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\n45x")),
    "raw profile, compressed": png(png_chunk(b"zTXt", b"Raw profile type exif\0\0x\x9c\x01")),
    "raw profile, of no method": png(png_chunk(b"zTXt", b"Raw profile type exif\0\7x")),
    "text's checksum": png(png_chunk(b"tEXt", b"Title\0a", checksum=1)),
    "text of megabytes": png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))),
    "XMP": png(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation='")),
    "profile": png(png_chunk(b"iCCP", b"sRGB\0\0x\x9cgarbage")),
    "profile, empty": png(png_chunk(b"iCCP", b"")),
    "profile, of no method": png(png_chunk(b"iCCP", b"sRGB\0\5x")),
    "resolution": png(png_chunk(b"pHYs", b"\0")),
    "gamma": png(png_chunk(b"gAMA", b"\0")),
    "chromaticities": png(png_chunk(b"cHRM", b"\0\0\0")),
    "intent": png(png_chunk(b"sRGB", b"")),
    "transparency's checksum": png(png_chunk(b"tRNS", bytes(6), checksum=1)),
    "animation": png(png_chunk(b"acTL", b"\0") + png_chunk(b"fcTL", b"\0")),
    "unknown": png(png_chunk(b"prVt", b"\0", checksum=1)),
    "longer than it is": png(struct.pack(">I4s", 900, b"tEXt") + b"Title\0a"),
    "a text that is cut": png(after=png_chunk(b"tEXt", bytes(99)))[:-60],
    "no end": png()[:-12],
}  # fmt: skip


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(segment: bytes) -> bytes:
    whole = encoded("JPEG", quality=95)
    return whole[:2] + segment + whole[2:]


JPEGS = {
    "EXIF": jpeg(jpeg_segment(0xE1, b"Exif\0\0Iee")),
    "EXIF, cut": jpeg(jpeg_segment(0xE1, b"Exif\0\0" + TIFF_TAIL)),
    "EXIF, empty": jpeg(jpeg_segment(0xE1, b"")),
    "XMP": jpeg(jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpm")),
    "profile": jpeg(jpeg_segment(0xE2, b"ICC_PROFILE\0\1\5garbage")),
    "profile, cut": jpeg(jpeg_segment(0xE2, b"ICC_PROFILE\0")),
    "several pictures": jpeg(jpeg_segment(0xE2, b"MPF\0" + TIFF_TAIL)),
    "Photoshop": jpeg(jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\x10")),
    "EXIF, longer than it is": jpeg(b"\xff\xe1\x01\x77Exif\0\0" + TIFF_TAIL),
    "EXIF, longer than the file": jpeg(b"\xff\xe1\xff\xffExif\0\0" + TIFF_TAIL),
    "thumbnail, longer than it is": jpeg(b"\xff\xe1\xff\xffExif\0\0" + TURNED + encoded("JPEG")),
    "JFIF": jpeg(jpeg_segment(0xE0, b"JFIF\0\1")),
    "Adobe": jpeg(jpeg_segment(0xEE, b"Adobe")),
    "comment": jpeg(jpeg_segment(0xFE, b"\xff\xda")),
}


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(flags: int, before: bytes = b"", after: bytes = b"", *, longer: int = 0) -> bytes:
    """A WebP with chunks before and after its pixels, and that many bytes too few."""
    simple = encoded("WEBP", lossless=True)
    header = struct.pack("<BxxxHBHB", flags, PIXELS.shape[1] - 1, 0, PIXELS.shape[0] - 1, 0)
    body = b"WEBP" + webp_chunk(b"VP8X", header) + before + simple[12:] + after
    return b"RIFF" + struct.pack("<I", len(body) + longer) + body


WEBPS = {
    "EXIF": webp(0x08, after=webp_chunk(b"EXIF", b"Exif\0\0Iee")),
    "EXIF, cut": webp(0x08, after=webp_chunk(b"EXIF", TIFF_TAIL)),
    "EXIF, and the file": webp(0x08, after=webp_chunk(b"EXIF", TURNED)[:-9], longer=9),
    "EXIF, of unknown length": webp(0x08, after=b"EXIF\xff\xff\xff\xff" + TURNED),
    "EXIF that is not there": webp(0x08),
    "XMP": webp(0x04, after=webp_chunk(b"XMP ", b"<x:xmpm")),
    "XMP, and the file": webp(0x04, after=webp_chunk(b"XMP ", b"<x:xmpmeta/>")[:-5], longer=5),
    "profile": webp(0x20, webp_chunk(b"ICCP", b"garbage")),
    "profile, longer than it is": webp(0x20, struct.pack("<4sI", b"ICCP", 400) + b"garbage"),
    "profile that is not there": webp(0x20),
    "unknown": webp(0, after=webp_chunk(b"abcd", b"a")[:-1], longer=900),
}


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF with entries in its directory besides those that it needs."""
    pixels = PIXELS.tobytes()
    height, width, _ = PIXELS.shape
    depths = 8 + len(pixels)
    needed = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, depths), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    listed = sorted([*needed, *entries])
    directory = struct.pack("<H", len(listed)) + b"".join(struct.pack("<HHII", *e) for e in listed)
    start = depths + 6
    return b"".join((
        b"II*\0", struct.pack("<I", start), pixels, struct.pack("<3H", 8, 8, 8), directory, bytes(4)
    ))  # fmt: skip


TIFFS = {
    "description": tiff((270, 2, 500, 99999)),
    "resolution": tiff((282, 5, 1, 99999)),
    "orientation": tiff((274, 3, 700, 99999)),
    "orientation 77": tiff((274, 3, 1, 77)),
    "XMP": tiff((700, 1, 500, 99999)),
    "profile": tiff((34675, 7, 500, 99999)),
    "EXIF": tiff((34665, 4, 1, 99999)),
    "EXIF in the pixels": tiff((34665, 4, 1, 9)),
    "unknown": tiff((40000, 77, 1, 99999)),
}

BROKEN = {
    f"{kind}: {what}": data
    for kind, files in {"png": PNGS, "jpg": JPEGS, "webp": WEBPS, "tif": TIFFS}.items()
    for what, data in files.items()
}
JPEG_PIXELS = np.asarray(Image.open(io.BytesIO(encoded("JPEG", quality=95))))


@pytest.mark.parametrize("what", BROKEN)
def test_broken_metadata_is_ignored(tmp_path: Path, what: str):
    kind = what.partition(":")[0]
    expected = JPEG_PIXELS if kind == "jpg" else PIXELS
    folder = tmp_path / "frames"
    folder.mkdir()
    path = folder / f"0.{kind}"
    path.write_bytes(BROKEN[what])
    np.testing.assert_array_equal(media.read_picture(path), expected)
    for video in (folder, path):  # as a folder of frames, and as a single one
        assert inspect(str(video), "a").frames == 1
        np.testing.assert_array_equal(read_frames(str(video), "a", [0], 20, 24)[0], expected)


def test_the_case():
    assert np.all(media.read_picture(CASES / "broken_exif.png") == 200)


# What was dropped with broken metadata would be missed here.
@pytest.mark.parametrize("kind, broken", [
    ("png", lambda exif: png(png_chunk(b"tEXt", b"a", checksum=1) + png_chunk(b"eXIf", exif))),
    ("webp", lambda exif: webp(0x28, after=webp_chunk(b"EXIF", exif), longer=9)),
    ("jpg", lambda exif: jpeg(
        jpeg_segment(0xE1, b"Exif\0\0" + exif) + jpeg_segment(0xE2, b"ICC_PROFILE\0"))),
    ("tif", lambda exif: tiff((270, 2, 500, 99999), (274, 3, 1, 3))),
])  # fmt: skip
def test_orientation_is_kept_where_other_metadata_is_broken(
    tmp_path: Path, kind: str, broken: Callable[[bytes], bytes]
):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(broken(TURNED))
    expected = JPEG_PIXELS if kind == "jpg" else PIXELS
    np.testing.assert_array_equal(media.read_picture(path), expected[::-1, ::-1])


def test_transparency_is_kept_where_other_metadata_is_broken(tmp_path: Path):
    key = struct.pack(">3H", *map(int, PIXELS[0, 0]))
    text = png_chunk(b"tEXt", b"a", checksum=1)
    (tmp_path / "a.png").write_bytes(png(text + png_chunk(b"tRNS", key)))
    read = media.read_picture(tmp_path / "a.png")
    assert np.all(read[0, 0] == 255) and np.all(read[1] == PIXELS[1])


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_exif_of_avif(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010E] = "a title"
    whole = encoded("AVIF", exif=exif.tobytes(), quality=100)
    assert whole.count(b"II*\0") + whole.count(b"MM\0*") == 1
    (tmp_path / "a.avif").write_bytes(whole)
    (tmp_path / "b.avif").write_bytes(whole.replace(b"II*\0", b"Iee\0").replace(b"MM\0*", b"Iee\0"))
    a, b = (media.read_picture(tmp_path / name) for name in ("a.avif", "b.avif"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("data", [
    png()[:-40],
    png(png_chunk(b"eXIf", b"Iee"))[:-40],
    png(png_chunk(b"tEXt", b"a", checksum=1))[:-40],
    png().replace(b"IHDR", b"IHDr"),
    jpeg(jpeg_segment(0xE2, b"ICC_PROFILE\0"))[:-200],
    webp(0x08)[:-200],
    tiff((270, 2, 500, 99999)).replace(struct.pack("<HHII", 273, 4, 1, 8), bytes(12)),
])  # fmt: skip
def test_pixels_that_are_broken_are_refused(tmp_path: Path, data: bytes):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"truncated or damaged|not a picture of a known format"):
        media.read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("data", [PNGS["EXIF"], PNGS["a text that is cut"]])
def test_an_opened_image(data: bytes):
    expected = (PIXELS / 127.5 - 1).astype(np.float32)
    found, _ = media.fit_image(Image.open(io.BytesIO(data)), 20, 24, "crop")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_strip_of_pictures():
    with open_video(film("a", [PNGS["text's checksum"]] * 2, 8), "a") as reader:
        np.testing.assert_array_equal(reader.read([0, 1], 20, 24), [PIXELS, PIXELS])


@pytest.mark.parametrize("kind, options", [("WEBP", {"lossless": True}), ("PNG", {})])
def test_an_animation(tmp_path: Path, kind: str, options: dict[str, bool]):
    frames = [PIXELS, 255 - PIXELS]
    first, second = map(Image.fromarray, frames)
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=[second], duration=100, **options)
    data = bytearray(buffer.getvalue())
    if kind == "WEBP":
        data += b"XMP \xff\xff\xff\xff<x"
        data[4:8] = struct.pack("<I", len(data) + 900)
    else:
        data[-12:-12] = png_chunk(b"zTXt", b"a\0\7", checksum=1)
    path = tmp_path / ("a.webp" if kind == "WEBP" else "a.apng")
    path.write_bytes(data)
    assert inspect(str(path), "a")[:2] == (2, 10.0)
    np.testing.assert_array_equal(read_frames(str(path), "a", [0, 1], 20, 24), frames)
