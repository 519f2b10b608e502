"""Pictures of every kind, against values worked out by hand."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynamicrafter_jax import media
from dynamicrafter_jax.errors import UserError

SIZE = (24, 20)  # width, height, as Pillow has it


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, picture: Image.Image, **options) -> np.ndarray:
    """Saves a picture and reads it back with the function under test."""
    picture.save(path, **options)
    return media.read_picture(path)


def cropped(image: Any, height: int, width: int) -> np.ndarray:
    return media.fit_image(image, height, width, "crop")[0]


def assert_all(picture: np.ndarray, colour: tuple[int, int, int]):
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.full((SIZE[1], SIZE[0], 3), colour))


# Where the stored row 0 and column 0 belong in the upright picture (EXIF 2.32, Orientation).
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    row, column = ORIENTATIONS[orientation]
    array = upright.swapaxes(0, 1) if row in ("left", "right") else upright
    array = array[::-1] if row in ("right", "bottom") else array
    return np.ascontiguousarray(array[:, ::-1] if column in ("right", "bottom") else array)


# Pillow turns a TIFF by itself, a PNG not.
@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path: Path, orientation: int, extension: str):
    upright = noise(20, 24, 3)
    picture = Image.fromarray(stored(upright, orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = saved(tmp_path / f"a.{extension}", picture, exif=exif)
    np.testing.assert_array_equal(read, upright)


def test_exif_orientation_of_16_bits_and_of_a_pillow_image():
    upright = noise(20, 24)
    picture = Image.fromarray(stored(upright, 6).astype(np.uint16) * 257)
    picture.getexif()[0x0112] = 6
    expected = (np.repeat(upright[..., None], 3, -1) / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(cropped(picture, 20, 24), expected, atol=1e-7)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes):
    picture = Image.new("RGB", SIZE, (255, 255, 255))
    assert_all(saved(tmp_path / "a.jpg", picture, exif=exif), (255, 255, 255))


@pytest.mark.parametrize("mode, colour, expected", [
    ("1", 1, (255, 255, 255)),
    ("L", 77, (77, 77, 77)),
    ("RGB", (1, 2, 3), (1, 2, 3)),
    # 0.2 of the colour and 0.8 of white: 0.2 * 200 + 0.8 * 255 = 244
    ("RGBA", (200, 100, 0, 51), (244, 224, 204)),
    ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
    ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
    ("LA", (100, 102), (193, 193, 193)),
])  # fmt: skip
def test_grey_colour_and_alpha(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
):
    assert_all(saved(tmp_path / "a.png", Image.new(mode, SIZE, colour)), expected)


def palette_picture(index: int) -> Image.Image:
    picture = Image.new("P", SIZE, index)
    picture.putpalette([10, 20, 30, 200, 100, 0])
    return picture


@pytest.mark.parametrize("extension", ["png", "gif", "bmp"])
def test_palette(tmp_path: Path, extension: str):
    assert_all(saved(tmp_path / f"a.{extension}", palette_picture(1)), (200, 100, 0))


def test_transparent_palette_entries(tmp_path: Path):
    alphas = bytes([255, 51])
    read = saved(tmp_path / "a.png", palette_picture(1), transparency=alphas)
    assert_all(read, (244, 224, 204))
    read = saved(tmp_path / "b.png", palette_picture(0), transparency=alphas)
    assert_all(read, (10, 20, 30))


def test_transparent_colour(tmp_path: Path):
    half = np.full((20, 24, 3), (5, 6, 7), np.uint8)
    half[:, 12:] = (9, 9, 9)
    read = saved(tmp_path / "a.png", Image.fromarray(half), transparency=(5, 6, 7))
    half[:, :12] = 255
    np.testing.assert_array_equal(read, half)


GREY_16 = np.zeros((20, 24), np.uint16)
GREY_16[0, :6] = [65535, 25700, 128, 129, 32768, 257]
GREY_16_AS_8 = [255, 100, 0, 1, 128, 1]  # v / 257, rounded


def png_of(kind: int, depth: int, pixels: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """A PNG by its specification, which Pillow does not write: any depth, any transparent colour.

    Args:
        kind: Grey is 0, RGB 2, and with alpha 4 and 6.
        depth: Bits of a number.
        pixels: (h, w, c); of up to 8 numbers a byte, rows must fill bytes.
        key: The transparent colour.
    """
    h, w, _ = pixels.shape
    if depth < 8:
        bits = np.unpackbits(pixels.astype(np.uint8), axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(h, -1), axis=-1)
    else:
        rows = pixels.astype(f">u{depth // 8}").reshape(h, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))]
    if key:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )


@pytest.mark.parametrize("kind, depth, left, right, key, expected", [
    (0, 1, [0], [1], (0,), (255, 255)),
    (0, 1, [0], [1], (1,), (0, 255)),
    (0, 2, [1], [2], (1,), (255, 170)),
    (0, 4, [7], [3], (7,), (255, 51)),
    (0, 8, [77], [78], (77,), (255, 78)),
    (0, 16, [257 * 40], [257 * 40 + 1], (257 * 40,), (255, 40)),
    (2, 8, [5, 5, 5], [5, 5, 6], (5, 5, 5), (255, (5, 5, 6))),
    (2, 16, [0x0520] * 3, [0x0520, 0x0520, 0x0620], (0x0520,) * 3, (255, (5, 5, 6))),
    # 0.2 of the colour and 0.8 of white
    (4, 16, [257 * 100, 257 * 51], [257 * 100, 65535], (), (224, 100)),
    (6, 16, [51400, 25700, 0, 13107], [51400, 25700, 0, 65535], (),
     ((244, 224, 204), (200, 100, 0))),
])  # fmt: skip
def test_transparency_of_any_depth(
    tmp_path: Path, kind: int, depth: int, left: list, right: list, key: tuple, expected: tuple
):
    pixels = np.empty((20, 24, len(left)), np.uint16)
    pixels[:, :8], pixels[:, 8:] = left, right
    (tmp_path / "a.png").write_bytes(png_of(kind, depth, pixels, key))
    read = media.read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read[:, :8], np.broadcast_to(expected[0], (20, 8, 3)))
    np.testing.assert_array_equal(read[:, 8:], np.broadcast_to(expected[1], (20, 16, 3)))


def test_16_bit_grey(tmp_path: Path):
    big_endian = Image.frombytes("I;16B", SIZE, GREY_16.astype(">u2").tobytes())
    for name, picture, mode in (
        ("a.png", Image.fromarray(GREY_16), "I;16"),
        ("a.tif", big_endian, "I;16B"),
        ("b.tif", Image.fromarray(GREY_16.astype(np.int32)), "I"),
    ):
        read = saved(tmp_path / name, picture)
        assert Image.open(tmp_path / name).mode == mode
        np.testing.assert_array_equal(read[0, :6], np.repeat([GREY_16_AS_8], 3, 0).T)
        assert not read[1:].any()


def test_portable_grey_map_of_16_bits(tmp_path: Path):
    header = b"P5 24 20 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + GREY_16.astype(">u2").tobytes())
    read = media.read_picture(tmp_path / "a.pgm")
    np.testing.assert_array_equal(read[0, :6, 0], GREY_16_AS_8)


def test_floating_point(tmp_path: Path):
    values = np.zeros((20, 24), np.float32)
    values[0, :3] = [1, 0.2, 0.5]
    read = saved(tmp_path / "a.tif", Image.fromarray(values))
    np.testing.assert_array_equal(read[0, :4, 1], [255, 51, 128, 0])
    values[0, :3] = [255, 0.6, 100.2]
    read = saved(tmp_path / "a.tif", Image.fromarray(values))
    np.testing.assert_array_equal(read[0, :4, 1], [255, 1, 100, 0])


@pytest.mark.parametrize("value, message", [
    (-0.5, r"from -0.5 to 1, outside \[0, 1\]"),
    (300.0, "from 0 to 300"),
    (np.nan, "from nan"),
    (np.inf, "to inf"),
])  # fmt: skip
def test_floating_point_out_of_range(tmp_path: Path, value: float, message: str):
    values = np.zeros((20, 24), np.float32)
    values[0, :2] = [1, value]
    with pytest.raises(UserError, match=message):
        saved(tmp_path / "a.tif", Image.fromarray(values))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_out_of_range(tmp_path: Path, value: int):
    values = np.zeros((20, 24), np.int32)
    values[0, 0] = value
    with pytest.raises(UserError, match=f"{value}, outside 0 to 65535|from {value} to 0"):
        saved(tmp_path / "a.tif", Image.fromarray(values))


@pytest.mark.parametrize("ink, expected", [
    ((0, 0, 0, 0), (255, 255, 255)),
    ((255, 0, 0, 0), (0, 255, 255)),
    ((55, 155, 255, 0), (200, 100, 0)),
    ((0, 0, 0, 155), (100, 100, 100)),
])  # fmt: skip
def test_cmyk(tmp_path: Path, ink: tuple[int, ...], expected: tuple[int, int, int]):
    assert_all(saved(tmp_path / "a.tif", Image.new("CMYK", SIZE, ink)), expected)
    # The JPEG stores ink the other way round, and is lossy by a level or two.
    read = saved(tmp_path / "a.jpg", Image.new("CMYK", SIZE, ink), quality=100)
    np.testing.assert_allclose(read.astype(int) - expected, 0, atol=2)


@pytest.mark.parametrize("extension", ["gif", "png", "webp"])
def test_animation_gives_its_first_frame(tmp_path: Path, extension: str):
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    options = {"lossless": True} if extension == "webp" else {}
    read = saved(
        tmp_path / f"a.{extension}", frames[0], save_all=True, append_images=frames[1:], **options
    )
    assert_all(read, (255, 0, 0))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("data, message", [
    (b"", r"is empty \(0 bytes\)"),
    (b"no picture at all", "not a picture of a known format: convert it to PNG or JPEG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"is a vector drawing \(SVG\)"),
    (png(noise(64, 64, 3))[:5000], "is truncated or damaged"),
    (jpeg(noise(64, 64, 3))[:2000], "is truncated or damaged"),
    (png(noise(1, 1, 3)), "too small, 1 x 1 pixels: give a picture of 16 pixels or more"),
    (png(noise(15, 40, 3)), "too small, 40 x 15 pixels"),
    (png_header(20_000, 20_000), "larger than 100 million pixels: shrink it"),
    (png_header(12_000, 10_000), "of 12000 x 10000 pixels, is larger than 100 million"),
    (png_header(10_000, 10_000), "truncated"),  # just within the limit
    (EPS, r"is a vector drawing \(EPS\): export it as PNG"),
])  # fmt: skip
def test_bad_pictures(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as leaked, pytest.raises(UserError) as caught:
        warnings.simplefilter("always")
        cropped(path, 32, 32)
    text = str(caught.value)
    assert caught.match(message)
    assert text.startswith(os.fspath(path)) and "\n" not in text and " object at " not in text
    assert not leaked
    assert os.listdir(tmp_path) == ["bad.png"]


def test_missing_pictures(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        cropped(tmp_path / "none.png", 32, 32)
    with pytest.raises(UserError, match="is a directory"):
        cropped(tmp_path, 32, 32)


def test_no_warnings_leak(tmp_path: Path):
    # Pillow advises against palettes with alpha when they are converted.
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        saved(tmp_path / "a.png", palette_picture(1), transparency=bytes([255, 51]))
        cropped(palette_picture(1), 32, 32)
    assert not leaked


def test_every_kind_of_image_gives_the_same(tmp_path: Path):
    picture = noise(40, 50, 3)
    (tmp_path / "a.png").write_bytes(png(picture))
    expected = media.cover_and_crop(picture, 32, 32)
    np.save(tmp_path / "a.npy", expected)
    for image in (
        tmp_path / "a.png",
        os.fspath(tmp_path / "a.png"),
        Image.fromarray(picture),
        picture,
        expected,
        tmp_path / "a.npy",
    ):
        loaded = cropped(image, 32, 32)
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, expected)


READY = np.zeros((32, 48, 3), np.float32)
NAN = np.full((32, 48, 3), np.nan, np.float32)


@pytest.mark.parametrize("array, message", [
    (READY[:, :40], r"must be float32 \(32, 48, 3\) in \[-1, 1\]: it is float32 \(32, 40, 3\)"),
    (READY[None], r"it is float32 \(1, 32, 48, 3\)"),
    (READY.astype(np.float64), "it is float64"),
    (READY + 1.5, "its values go from 1.5 to 1.5"),
    (NAN, "its values go from nan to nan"),
    (np.array([None]), "it is object|not a whole .npy file"),
])  # fmt: skip
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    for image in (array, tmp_path / "a.npy"):
        with pytest.raises(UserError, match=message):
            cropped(image, 32, 48)


def test_pixels_in_an_npy_file_are_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", noise(32, 48, 3))
    with pytest.raises(UserError, match=r"a.npy must be float32 .* it is uint8"):
        cropped(tmp_path / "a.npy", 32, 48)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 4), (2, 32, 32, 3), (8, 32, 3)])
def test_bad_pixel_arrays(shape: tuple[int, ...]):
    with pytest.raises(UserError, match=r"the image array (must be|is too small)"):
        cropped(noise(*shape), 32, 32)


@pytest.mark.parametrize("picture, message", [
    (Image.new("RGB", (1, 1)), "the image is too small"),
    (Image.new("LAB", (32, 32)), "the image has the colour mode LAB: save it as RGB"),
])  # fmt: skip
def test_bad_pillow_images(picture: Image.Image, message: str):
    with pytest.raises(UserError, match=message):
        cropped(picture, 32, 32)
