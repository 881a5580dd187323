"""The one reader of photos: from anybody's image file to the pixels that its maker meant.

Upright as its camera was held, 16-bit values as what they are, and nothing opened that is no photo.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.errors import ImageError

try:
    import pyspng
except ImportError:  # an extra
    pyspng = None

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""What is read, by content whatever the name. Pillow knows more; some of them start other programs (PostScript)."""

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Endings of the files that are taken for photos in a folder, in small letters."""

MAX_PIXELS = 89_000_000
"""Of one photo: 270 MB as RGB. Below what Pillow warns of; files of a few kilobytes may claim more."""

MAX_ASPECT = 200
"""Longer side by shorter one: where the shorter is resized to a model's input, the other one grows with it."""

MAX_BYTES = 1 << 30

_LONGEST_PPM_HEADER = 1 << 16

_ORIENTATION = 0x0112  # of EXIF

# a PNG file begins with its signature and the header chunk: length, name, width, height, depth, color, compression,
# filter, interlacing, checksum
_PNG_HEADER = struct.Struct(">8sI4sIIBBBBBI")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# chunks, and beginnings of texts, by which a file may be turned or hold several images, or pixels that only some read
_PNG_SPECIAL = (
    *(b"eXIf", b"acTL", b"fcTL", b"fdAT", b"DDAT", b"IHDR"),
    *(kind + key for kind in _PNG_TEXTS for key in (b"exif", b"xmp", b"Raw ", b"XML:")),
)


def read_image(path: str | Path, content: bytes | None = None, enough: int | None = None) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3), from its bytes if they are at hand. Raises ImageError (a ValueError).

    Turned as its EXIF orientation says. 16-bit grays are scaled to 8 bits; other numbers than that (32-bit integers,
    floats) have no white and are refused. Of several pages or frames the first is read. enough: decode a JPEG file at a
    half, a quarter or an eighth where both sides can be divided so and the shorter one keeps as many pixels (libjpeg's
    scaling, in less time).
    """
    try:
        with (
            io.BytesIO(content) if content is not None else _open_regular(path) as file,
            Image.open(_with_short_header(file), formats=FORMATS) as image,
        ):
            _check_size(*image.size)
            if enough is not None:
                _decode_small(image, enough)
            return _to_rgb(_upright(image))
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}; check the path.") from error
    except Exception as error:  # of a damaged file Pillow's readers raise whatever they stumble over
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        else:
            reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
        raise ImageError(
            f"{path} is not an image that can be read ({reason}); give a JPEG, PNG or WebP file."
        ) from error


def read_rows(path: str | Path) -> np.ndarray | PngRows:
    """An image file to take rows from: `read_rows(path)[top:bottom]` is `read_image(path)[top:bottom]`.

    An array, but of a PNG file something that decodes what a slice needs. Raises ImageError (a ValueError), for a PNG
    file that is whole but can't be decoded when rows are taken.
    """
    try:
        with _open_regular(path) as file:
            content = file.read()
    except Exception:
        return read_image(path)  # says what is wrong
    if _is_plain_png(content):
        _, _, _, width, height, *_ = _PNG_HEADER.unpack_from(content)
        with contextlib.suppress(ValueError):
            _check_size(width, height)
            return PngRows(path, content, (height, width, 3))
    return read_image(path, content)


def _is_plain_png(content: bytes) -> bool:
    """Whether a PNG file is whole and undamaged, holds one image that nothing turns, and has its rows in order.

    Checksums are compared here because libspng, as pyspng calls it, doesn't, and because zlib's own comes behind the
    last row.
    """
    if len(content) < _PNG_HEADER.size:
        return False
    signature, length, name, *_, interlaced, _ = _PNG_HEADER.unpack_from(content)
    if (signature, length, name, interlaced) != (_PNG_SIGNATURE, 13, b"IHDR", 0):
        return False
    place, view = len(signature), memoryview(content)
    while name != b"IEND":
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        name = content[place + 4 : place + 8]
        special = content.startswith(_PNG_SPECIAL, place + 4) and place > len(signature)  # the first one is the header
        if end > len(content) or special or _checksum(view[place + 4 : end - 4]) != content[end - 4 : end]:
            return False
        place = end
    return True


def _checksum(chunk: bytearray | memoryview) -> bytes:
    """Of a PNG chunk's name and data."""
    return zlib.crc32(chunk).to_bytes(4, "big")


class PngRows:
    """A PNG file of `shape` (H, W, 3) whose rows are decoded from the first to the last that is asked for.

    A row depends on those above it and on nothing below, so it is read as a file that claims to end there.
    """

    def __init__(self, path: str | Path, content: bytes, shape: tuple[int, int, int]) -> None:
        self.path, self.content, self.shape = path, content, shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Neighboring rows, uint8 (rows, W, 3); what an array gives for any other index than a slice of them. Raises
        ImageError (a ValueError)."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            return np.asarray(self)[rows]
        height, width, _ = self.shape
        top, bottom, _ = rows.indices(height)
        content, lowest = self.content, max(bottom, -(-width // MAX_ASPECT))
        if lowest < height:
            header = bytearray(content[: _PNG_HEADER.size])
            header[20:24] = struct.pack(">I", lowest)
            header[29:33] = _checksum(header[12:29])
            content = bytes(header) + content[_PNG_HEADER.size :]
        found = _decode_png(content)
        return (read_image(self.path, content) if found is None else found)[top:bottom]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("An array of a PNG file's rows is always a new one; leave copy=False out.")
        return self[:].astype(dtype or np.uint8, copy=False)


def _decode_png(content: bytes) -> np.ndarray | None:
    """By libspng, if it is installed, in half of the time that Pillow takes. None of what Pillow should see: other
    kinds than RGB of 8 bits, damaged files."""
    *_, depth, color, _, _, _, _ = _PNG_HEADER.unpack_from(content)
    if pyspng is None or (depth, color) != (8, 2):
        return None
    try:
        return pyspng.load(content, format="RGB")
    except Exception:
        return None


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image of PIL as RGB, uint8 (H, W, 3), as `read_image` makes it of a file. Raises ImageError (a ValueError)."""
    try:
        _check_size(*image.size)
        return _to_rgb(_upright(image))
    except Exception as error:
        raise ImageError(f"The image of PIL can't be read ({error}); give one of 8 or 16 bits.") from error


def _open_regular(path: str | Path) -> BinaryIO:
    """A regular file: a pipe would be waited for, for ever."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
        file.close()
        raise ValueError("it is no regular file" if about.st_size <= MAX_BYTES else f"it has {about.st_size:,} bytes")
    return file


def _with_short_header(file: BinaryIO) -> BinaryIO:
    """The same file, unless it is a PPM whose comments Pillow would read a byte at a time. Raises ValueError."""
    head = file.read(_LONGEST_PPM_HEADER)
    file.seek(0)
    if len(head) == _LONGEST_PPM_HEADER and head[:1] == b"P":
        words = re.sub(rb"#[^\r\n]*", b"", head).split(maxsplit=3)  # width and height, and of most the largest value
        if len(words) < (3 if head[1:2] in (b"1", b"4") else 4):
            raise ValueError("its header is longer than that of any photo")
    return file


def _check_size(width: int, height: int) -> None:
    """Before anything is decoded. Raises ValueError."""
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"its {width} x {height} pixels are more than the {MAX_PIXELS:,} of a photo")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"its {width} x {height} pixels are a line, not a photo")


def _decode_small(image: Image.Image, enough: int) -> None:
    """Let libjpeg scale, if it is a JPEG file; a side that can't be divided would be stretched by part of a pixel."""
    width, height = image.size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and min(width, height) // scale >= enough:
            image.draft(None, (width // scale, height // scale))  # does nothing for other formats
            return


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # first: some formats turn the image themselves, and say so by taking the tag away
    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data says nothing; the pixels are there
        return image
    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(turned)
    return image if how is None else image.transpose(how)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        gray = np.asarray(image).astype(np.int64)  # Pillow itself would cut off what is above 255
        gray = ((gray + 128) // 257).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its {'32-bit integers' if image.mode == 'I' else 'floats'} have no white; save 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    # a copy: Pillow's own memory is read-only
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
