"""The one reader of photos, and that all of the zoo reads by it."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zoo import photos
from zoo.errors import DataError, ImageError
from zoo.photos import PngRows, read_image, read_rows
from zoo.pictures import to_input
from zoo.train.data.folder import ImageFolder
from zoo.train.data.pairs import ImagePairs

ROOT = Path(__file__).parents[1]
CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:], CORNERS[32:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # the last is black


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def held(orientation: int) -> Image.Image:
    """CORNERS as the sensor of a camera that is held so has seen it."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(CORNERS)
    return image.transpose(inverse[orientation]) if orientation in inverse else image


def photo(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(quality=95) if kind == "JPEG" else dict(lossless=True) if kind == "WEBP" else {}
    return encoded(held(orientation), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(0, 10))
def test_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    content = photo(orientation, kind)
    (tmp_path / "x.jpg").write_bytes(content)
    for read in (read_image("x", content), read_image(tmp_path / "x.jpg")):
        assert read.shape == CORNERS.shape and np.abs(read.astype(int) - CORNERS).mean() < 4


def test_upright_everywhere(tmp_path: Path) -> None:
    """In what models get, in folders to train on, and in training pairs."""
    import timm

    (tmp_path / "a.jpg").write_bytes(photo(6))
    (tmp_path / "b.jpg").write_bytes(photo(1))
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    pair = ImagePairs(tmp_path)[0]
    for image in (ImageFolder(tmp_path)[0]["image"], pair["image1"], pair["image2"]):
        assert image.shape == CORNERS.shape and np.abs(image.astype(int) - CORNERS).mean() < 4
    model = timm.create_model("croco_nano_patch8_64")
    assert (to_input(tmp_path / "a.jpg", model) - to_input(tmp_path / "b.jpg", model)).abs().mean() < 0.1


def test_damaged_exif_leaves_the_photo(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(CORNERS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of corrupt EXIF data
        assert read_image("x", content).shape == CORNERS.shape


RAMP = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "PPM"),
        b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes(),
    ],
)
def test_16_bits(content: bytes) -> None:
    read = read_image("x", content)
    assert len(np.unique(read)) == 256
    assert np.abs(read.astype(float) - RAMP[..., None] / 257).max() <= 0.5


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_color(color: int, samples: int) -> None:
    rows = b"".join(b"\0" + np.repeat(row[:, None], samples, 1).astype(">u2").tobytes() for row in RAMP)
    read = read_image("x", png(32, 32, 16, color, rows))
    assert np.abs(read.astype(float) - RAMP[..., None] / 257).max() <= 1


def test_numbers_without_a_white() -> None:
    for kind in (np.int32, np.float32):
        with pytest.raises(ImageError, match="have no white"):
            read_image("x", encoded(Image.fromarray(np.zeros((8, 8), kind)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_other_modes(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    read = read_image("x", encoded(Image.fromarray(CORNERS).convert(mode), kind))
    assert read.shape == CORNERS.shape and read.dtype == np.uint8 and read.flags.writeable


BOMBS = {
    "PNG": png(30_000, 30_000, 8, 0, bytes(100)),
    "PNG under Pillow's limit": png(13_000, 13_000, 1, 0, bytes(100)),
    "a line": png(1, 80_000_000, 1, 0, bytes(100)),
    "PPM": b"P6 60000 60000 255\n" + bytes(100),
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "nothing": png(0, 0, 8, 0, b""),
    "text": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 1 << 31) + b"zTXt",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_pixel_bombs(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS[name])
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"x\.png is not an image that can be read \("):
        read_image(tmp_path / "x.png")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000 and time.monotonic() - start < 2
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".eps"])
def test_no_other_program_is_started(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under any name; Pillow would give it to Ghostscript."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(shutil, "which", lambda *_: "/usr/bin/gs")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / f"photo{suffix}").write_bytes(script)
    with pytest.raises(ImageError, match="it is none of JPEG, PNG"):
        read_image(tmp_path / f"photo{suffix}")


@pytest.mark.parametrize("kind", ["ICO", "PCX", "SGI", "TGA", "DDS", "PDF", "XBM", "GRIB"])
def test_formats_that_are_no_photos(kind: str) -> None:
    if kind == "GRIB":
        content = b"GRIB" + bytes(4) + b"\x01" + bytes(100)
    elif kind == "XBM":
        content = encoded(Image.fromarray(CORNERS).convert("1"), "XBM")
    else:
        content = encoded(Image.fromarray(CORNERS), kind)
    with pytest.raises(ImageError, match="it is none of"):
        read_image("x", content)


def test_pipes_and_folders(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "c.jpg").symlink_to(tmp_path / "c.jpg")
    for name in "abc":
        with pytest.raises(ImageError, match=f"{name}.jpg is not an image that can be read"):
            read_image(tmp_path / f"{name}.jpg")
    with pytest.raises(ImageError, match="There is no image"):
        read_image(tmp_path / "d.jpg")


def test_damaged_files_raise_our_error_only() -> None:
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"):
            whole = encoded(Image.fromarray(CORNERS), kind)
            for _ in range(60):
                damaged = bytearray(whole[: generator.integers(1, len(whole) + 1)])
                for _ in range(generator.integers(0, 5)):
                    damaged[generator.integers(min(len(damaged), 400))] = generator.integers(256)
                with contextlib.suppress(ImageError):
                    assert read_image("x", bytes(damaged)).dtype == np.uint8


def test_textures_are_read_so_too(tmp_path: Path) -> None:
    from zoo.scenes.photos import texture_levels

    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(DataError, match="can't be read as an image"):
        texture_levels(tmp_path / "x.jpg")


def test_nobody_else_opens_photos() -> None:
    """Image.open without formats= stands nowhere in the package."""
    for path in (ROOT / "zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert any(keyword.arg == "formats" for keyword in node.keywords), path
    assert photos.FORMATS[0] == "JPEG"


@pytest.mark.parametrize("before", [b"P6 ", b"P6 4 4 ", b"P4 4 "])
def test_comment_of_megabytes(before: bytes) -> None:
    """Pillow would take a second for each two megabytes."""
    with pytest.raises(ImageError, match="its header is longer than that of any photo"):
        read_image("x.ppm", before + b"#" * 10_000_000 + b"\n255\n" + bytes(48))
    assert read_image("x.ppm", b"P6 #a\n200 200 #b\n255\n" + bytes(120_000)).shape == (200, 200, 3)


@pytest.mark.parametrize("decoder", ["libspng", "Pillow"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_rows_are_those_of_the_whole_image(
    mode: str, decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where few rows of a wide image would be a line."""
    if decoder == "Pillow":
        monkeypatch.setattr(photos, "pyspng", None)
    path = tmp_path / "image.png"
    levels = np.random.default_rng(0).integers(0, 256, (40, 1500, 3), dtype=np.uint8)
    notes = PngInfo()
    notes.add_text("Software", "Blender")
    notes.add(b"gAMA", struct.pack(">I", 30_000))
    image = Image.fromarray(levels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels)
    transparent = dict(transparency=tuple(levels[3, 4].tolist())) if mode == "RGB" else {}
    (image if mode == "I;16" else image.convert(mode)).save(path, pnginfo=notes, **transparent)
    whole, rows = read_image(path), read_rows(path)
    assert isinstance(rows, PngRows) and rows.shape == whole.shape
    for part in (slice(3, 20), slice(0, 1), slice(38, 40), slice(None), slice(-5, -2), slice(30, 60), slice(7, 7)):
        found = rows[part]
        np.testing.assert_array_equal(found, whole[part])
        assert found.flags.writeable
    np.testing.assert_array_equal(np.asarray(rows), whole)
    assert np.asarray(rows, dtype=np.float32).dtype == np.float32

    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"image\.png is not an image"):
        read_rows(path)[5:40]


def test_rows_of_other_files_are_arrays(tmp_path: Path) -> None:
    """JPEG, what may be turned or hold several images, and what is no image."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "turned.png", exif=turned)
    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    image.save(tmp_path / "told.png", pnginfo=told)
    image.save(tmp_path / "moving.png", save_all=True, append_images=[image.rotate(180)])
    for name, shape in (
        ("a.jpg", (20, 30, 3)),
        ("turned.png", (30, 20, 3)),
        ("told.png", (30, 20, 3)),
        ("moving.png", (20, 30, 3)),
    ):
        rows = read_rows(tmp_path / name)
        assert isinstance(rows, np.ndarray) and rows.shape == shape
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png", "."):
        with pytest.raises(ImageError):
            read_rows(tmp_path / name)
    content = bytearray(encoded(image, "PNG"))
    content[20] ^= 1  # the height, whose checksum doesn't agree
    (tmp_path / "damaged.png").write_bytes(content)
    with pytest.raises(ImageError):
        read_rows(tmp_path / "damaged.png")


PLAIN = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)), "PNG")
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3" + bytes(6)  # by 180 degrees
BARE_TURNED = TURNED.removeprefix(b"Exif\0\0")
ODD = {  # chunks between header and pixels, and behind them
    "EXIF behind": (b"", chunk(b"eXIf", BARE_TURNED)),
    "EXIF in a text": (chunk(b"tEXt", b"exif\0" + TURNED), b""),
    "EXIF in a text behind": (b"", chunk(b"tEXt", b"exif\0" + TURNED)),
    "EXIF in hexadecimal": (chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  34\n" + TURNED.hex().encode()), b""),
    "another header": (chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 29, 8, 2, 0, 0, 0)), b""),
    "another header of gray pixels": (chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 30, 8, 0, 0, 0, 0)), b""),
}


@pytest.mark.parametrize("name", ODD)
def test_rows_of_odd_files(name: str, tmp_path: Path) -> None:
    before, behind = ODD[name]
    path = tmp_path / "odd.png"
    path.write_bytes(PLAIN[:33] + before + PLAIN[33:-12] + behind + PLAIN[-12:])
    whole, rows = read_image(path), read_rows(path)
    assert rows.shape == whole.shape
    np.testing.assert_array_equal(rows[3:9], whole[3:9])
    assert "EXIF" not in name or np.array_equal(whole, read_image("x", PLAIN)[::-1, ::-1])


@pytest.mark.parametrize("decoder", ["libspng", "Pillow"])
def test_rows_of_damaged_files(decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never other pixels than the file had, wherever a bit is wrong or the file ends; libspng compares no checksums."""
    if decoder == "Pillow":
        monkeypatch.setattr(photos, "pyspng", None)
    path, whole = tmp_path / "damaged.png", read_image("x", PLAIN)
    cut = [PLAIN[:end] for end in range(0, len(PLAIN), 40)]
    wrong = [PLAIN[:at] + bytes([PLAIN[at] ^ 4]) + PLAIN[at + 1 :] for at in range(0, len(PLAIN), 25)]
    refused = 0
    for content in (*cut, *wrong):
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_rows(path)[2:20], whole[2:20])
        except ImageError:
            refused += 1
    assert refused >= len(cut) + len(wrong) - 1  # the sum behind the last chunk says nothing of pixels


def test_rows_of_lines_are_refused(tmp_path: Path) -> None:
    for width, height in ((1, 201), (201, 1), (1, 80_000), (20, 0), (9_500, 9_500)):
        (tmp_path / "line.png").write_bytes(png(width, height, 8, 2, bytes(4 * 201)))
        with pytest.raises(ImageError, match="is not an image"):
            read_rows(tmp_path / "line.png")


def test_any_index_of_rows(tmp_path: Path) -> None:
    """As of an array."""
    (tmp_path / "a.png").write_bytes(PLAIN)
    whole, rows = read_image("x", PLAIN), pickle.loads(pickle.dumps(read_rows(tmp_path / "a.png")))
    assert isinstance(rows, PngRows)
    reversed_rows, few = slice(20, 3, -1), (slice(2, 9), slice(None, None, 3))
    for index in (0, -1, reversed_rows, slice(0, 9, 2), slice(9, 3), few, ..., [4, 2], (3, 4, 1)):
        np.testing.assert_array_equal(rows[index], whole[index])
    with pytest.raises(IndexError):
        rows[30]
    with pytest.raises(ValueError, match="always a new one"):
        np.asarray(rows, copy=False)
