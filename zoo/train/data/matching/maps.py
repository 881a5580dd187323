"""Files of disparity and flow: PFM, .flo, KITTI's and Middlebury's PNG, NPY, Spring's HDF5.

Readers give float32 arrays, disparity (H, W) or flow (H, W, 2), in pixels, unknown = inf in all channels. Whatever is
wrong with a file is told by a DataError (a ValueError) that names it.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.errors import DataError
from zoo.weights.disk.files import atomic_writer

_FLO_MAGIC = np.float32(202021.25)  # "PIEH" (Baker et al., IJCV 2011)
_UNKNOWN = 1e9  # lengths beyond mean "unknown" in .flo files (the same)
_HEADER = 256  # bytes that a PFM file's words are in
_LARGEST = 2**15  # pixels along a side; more stands for a broken header
_MOST = 200_000_000  # numbers of a compressed array; Spring's have 17 million


def read_truth(path: str | Path, task: str, kind: str = "") -> np.ndarray:
    """A file of disparity ("stereo") or "flow". kind: one of `KINDS`, by default what the file's ending says.

    Raises DataError (a ValueError).
    """
    path = Path(path)
    kind = kind or path.suffix.lower().removeprefix(".")
    if (kind, task) not in KINDS:
        known = sorted({name for name, of in KINDS if of == task})
        raise DataError(f"{path} is no file of {_what(task)} that can be read; known kinds are {', '.join(known)}.")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no regular file")  # a pipe would be waited for, for ever
        values = KINDS[kind, task](path).astype(np.float32, order="C")  # PFM files are upside down
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no {_what(task)} file {path}; check the path, or the list that names it.") from error
    except Exception as error:  # of a damaged file readers raise whatever they stumble over
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"The {_what(task)} file {path} can't be read ({reason}); make or download it anew.") from error
    shape = (*values.shape[:2], 2) if task == "flow" else values.shape[:2]
    if values.ndim < 2 or values.shape != shape or not values.size:
        raise DataError(
            f"{path} holds an array of shape {'x'.join(map(str, values.shape)) or '1'}, no {_what(task)}; it should be "
            f"height x width{' x 2' if task == 'flow' else ''}."
        )
    within = np.abs(values) <= _UNKNOWN  # which NaN isn't, either
    values[~(within.all(-1) if task == "flow" else within)] = np.inf
    return values


def check_ending(path: str | Path, task: str) -> None:
    """Raises DataError (a ValueError) for a file name that `write_map` can't write; "" stands for no file."""
    endings = {"stereo": (".pfm", ".npy"), "flow": (".flo", ".npy")}[task]
    if path and not str(path).lower().endswith(endings):
        raise DataError(
            f"{_what(task).capitalize()} can't be saved as {Path(path).name}; end it with {' or '.join(endings)}."
        )


def write_map(path: str | Path, values: np.ndarray) -> None:
    """Write disparity (H, W) as .pfm or .npy, flow (H, W, 2) as .flo or .npy, by the path's ending; the file appears
    whole or not at all. Raises DataError (a ValueError) for another ending, StorageError (an OSError)."""
    path, values = Path(path), np.ascontiguousarray(values, dtype="<f4")
    task = "flow" if values.ndim == 3 else "stereo"
    check_ending(path, task)
    with atomic_writer(path) as file:
        if path.suffix.lower() == ".npy":
            np.save(file, values)
        elif task == "stereo":
            height, width = values.shape
            file.write(f"Pf\n{width} {height}\n-1.0\n".encode())  # a negative scale: little endian
            file.write(values[::-1].tobytes())  # from the lowest row up
        else:
            file.write(_FLO_MAGIC.astype("<f4").tobytes() + np.array(values.shape[1::-1], dtype="<i4").tobytes())
            file.write(values.tobytes())


def read_pfm(path: Path) -> np.ndarray:
    """A PFM file, (H, W) or (H, W, 3), whichever byte order it has."""
    content = path.read_bytes()
    # the format, width, height and scale are words; the pixels follow one space
    parts = content[:_HEADER].split(maxsplit=4)
    if not parts or parts[0] not in (b"Pf", b"PF"):
        raise DataError(f"{path} is no PFM file (it begins with {content[:8]!r}); give one that begins with Pf or PF.")
    channels = 3 if parts[0] == b"PF" else 1
    try:
        width, height, scale = int(parts[1]), int(parts[2]), float(parts[3])
    except (IndexError, ValueError):
        width = height = 0
        scale = math.nan
    if not (0 < width <= _LARGEST and 0 < height <= _LARGEST and math.isfinite(scale) and scale != 0):
        raise DataError(f"{path} has a PFM header that makes no sense ({content[:32]!r}); make the file anew.")
    start = 0
    for word in parts[:4]:
        start = content.index(word, start) + len(word)
    start += 1  # the one white space that ends the header
    _check_length(path, len(content) - start, 4 * width * height * channels)
    values = np.frombuffer(content, "<f4" if scale < 0 else ">f4", offset=start).reshape(height, width, -1)[::-1]
    return values[..., 0] if channels == 1 else values


def read_flo(path: Path) -> np.ndarray:
    """Middlebury's flow format: a magic number, width, height, and x and y of each pixel."""
    content = path.read_bytes()
    if len(content) < 12 or np.frombuffer(content[:4], "<f4")[0] != _FLO_MAGIC:
        raise DataError(f"{path} is no .flo file (it begins with {content[:8]!r}); give one that begins with PIEH.")
    width, height = (int(x) for x in np.frombuffer(content[4:12], "<i4"))
    if not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
        raise DataError(f"{path} says that it is {width}x{height} pixels large; make the file anew.")
    _check_length(path, len(content) - 12, 8 * width * height)
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)


def _pfm_flow(path: Path) -> np.ndarray:
    values = read_pfm(path)
    return values[..., :2] if values.ndim == 3 else values  # FlyingThings' third channel is empty


def read_png(path: Path) -> np.ndarray:
    """A PNG as it is, uint8 or uint16, (H, W) or (H, W, channels)."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # every chunk's checksum: a decoder fills what is missing with zeros
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA"):
                levels = np.array(image)
                return levels.astype(np.uint16) if levels.dtype == np.int32 else levels
        return _color_png(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no PNG that can be read ({error}); make the file anew.") from error


def _color_png(path: Path) -> np.ndarray:
    try:
        import cv2  # Pillow halves the depth of 16-bit color
    except ImportError as error:
        raise DataError(f"Reading {path} needs OpenCV; install it with pip install 'pretext-zoo[data]'.") from error
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise OSError("OpenCV can't decode it")
    return image[..., 2::-1]  # OpenCV's channels are blue, green, red


def _png_disparity(factor: float | None) -> Callable[[Path], np.ndarray]:
    """Gray levels are disparities times `factor` and 0 is unknown; None: KITTI's 256 for 16 bits, 1 for 8 bits."""

    def read(path: Path) -> np.ndarray:
        levels = read_png(path)
        if levels.ndim != 2:
            raise DataError(f"{path} is a PNG of {levels.shape[-1]} channels; a disparity has one, in gray levels.")
        if factor == 256 and levels.dtype != np.uint16:
            raise DataError(f"{path} is a PNG of {8 * levels.itemsize} bits; KITTI's disparities have 16.")
        by = factor or (256 if levels.dtype == np.uint16 else 1)
        return np.where(levels == 0, np.inf, levels.astype(np.float32) / np.float32(by))

    return read


def _crestereo_disparity(path: Path) -> np.ndarray:
    """CREStereo's PNG: 32 times the disparity; 0 is a disparity like others."""
    levels = read_png(path)
    if levels.ndim != 2:
        raise DataError(f"{path} is a PNG of {levels.shape[-1]} channels; a disparity has one, in gray levels.")
    return levels.astype(np.float32) / 32


def _png_flow(path: Path) -> np.ndarray:
    """KITTI's PNG of three 16-bit channels: 64 times x and y plus 2^15, and whether they are known."""
    levels = read_png(path)
    if levels.ndim != 3 or levels.shape[-1] != 3 or levels.dtype != np.uint16:
        raise DataError(f"{path} is no flow PNG as KITTI has them, of three channels of 16 bits; give one of those.")
    flow = (levels[..., :2].astype(np.float32) - 2**15) / 64
    flow[levels[..., 2] == 0] = np.inf
    return flow


def _npy(path: Path) -> np.ndarray:
    try:
        # mapped, since then a header can't ask for more memory than the file has
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except Exception as error:  # its header is read as Python text, a zip file as one of arrays
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path} holds no plain array ({reason}); save one with numpy.save, without pickled objects."
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise DataError(f"{path} holds no numbers; save an array of them with numpy.save.")
    values = np.array(values)
    return np.squeeze(values, -1) if values.ndim == 3 and values.shape[-1] == 1 else values


def _booster_disparity(path: Path) -> np.ndarray:
    values = _npy(path)
    return np.where(values <= 0, np.inf, values)  # no surface is at an infinite distance there


def _hdf5(key: str) -> Callable[[Path], np.ndarray]:
    """Spring's files: the array `key` of an HDF5 file, of twice the images' size, in the images' pixels."""

    def read(path: Path) -> np.ndarray:
        try:
            import h5py
        except ImportError as error:
            raise DataError(f"Reading {path} needs h5py; install it with pip install 'pretext-zoo[data]'.") from error
        try:
            with h5py.File(path, "r") as file:
                values = file[key]
                if not isinstance(values, h5py.Dataset) or values.dtype.kind not in "fiu":
                    raise ValueError("it holds no numbers")
                if values.size > _MOST:  # a few bytes may claim any number of zeros
                    raise ValueError(f"it claims {values.size:,} numbers")
                return np.asarray(values)
        except Exception as error:
            raise DataError(f"{path} is no HDF5 file with an array '{key}' ({error}); download it anew.") from error

    return read


KINDS: dict[tuple[str, str], Callable[[Path], np.ndarray]] = {
    ("pfm", "stereo"): read_pfm,
    ("npy", "stereo"): _npy,
    ("png", "stereo"): _png_disparity(None),
    ("kitti", "stereo"): _png_disparity(256),
    ("middlebury", "stereo"): _png_disparity(1),
    ("crestereo", "stereo"): _crestereo_disparity,
    ("booster", "stereo"): _booster_disparity,
    ("dsp5", "stereo"): _hdf5("disparity"),
    ("flo", "flow"): read_flo,
    ("pfm", "flow"): _pfm_flow,
    ("npy", "flow"): _npy,
    ("png", "flow"): _png_flow,
    ("flo5", "flow"): _hdf5("flow"),
}
"""How a file of a kind holds a task's truth: mostly the kind is the file's ending."""


def _what(task: str) -> str:
    return "disparity" if task == "stereo" else "flow"


def _check_length(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{path} holds {found} bytes of pixels where its header promises {expected}; it is cut short or damaged, "
            "so make or download it anew."
        )
