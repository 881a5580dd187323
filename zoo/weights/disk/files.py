"""Weights files on disk: written atomically, with a record beside them, checked quickly or fully.

The record of `model.safetensors` is `model.safetensors.json`: where the weights came from, and size and
digests of the file (see `write_record`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import mmap
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from zoo.errors import CorruptWeightsError, StorageError, ZooError, printable
from zoo.weights.collector import paused_collector

try:
    import fcntl
except ImportError:  # Windows, where files that are open can't be removed anyway
    fcntl = None  # type: ignore[assignment]

# Names of element types in safetensors headers.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}

# The format allows 100 MB, which could say `[[],[],...` and take 3 GB to parse; a large model's is 0.1 MB.
_MAX_HEADER = 4_000_000
MAX_TENSORS = 20_000  # of a file; large models have some 10^3
_MAX_DIMENSIONS = 64  # torch's limit
_MAX_JSON = 8_000_000
_CHUNK = 1 << 20

# A header's entry that names the digest of all that comes behind the header. Through it a header is that of one
# content, and a record that knows the header's digest can't be mistaken for that of other weights of the same shapes.
_CONTENT = "content_sha256"


def save_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`, whole or not at all; the same content gives the same bytes.

    safetensors' own writer orders metadata at random, so that equal contents would have different digests.
    This one sorts everything, and holds one tensor at a time.

    Raises StorageError if the file can't be written (full disk, missing permission).
    """
    # Wide elements first: every tensor's data is aligned, whatever its neighbors' sizes.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    unknown = [name for name in names if tensors[name].dtype not in _DTYPES]
    if unknown:
        raise StorageError(
            f"{path} can't be written: its format has no {str(tensors[unknown[0]].dtype).removeprefix('torch.')}, the "
            f"type of {printable(unknown[0])}. Convert the tensors to a plain type such as float32."
        )
    entries: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }

    def header(content: str) -> bytes:
        about = dict(sorted({**metadata, _CONTENT: content}.items()))
        text = json.dumps({"__metadata__": about, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    digest = hashlib.sha256()
    with atomic_writer(Path(path)) as file:
        file.write(header("0" * 64))
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(0)
        file.write(header(digest.hexdigest()))


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` once it is written and on disk; until then it has another name.

    What writers of the same file left behind that were killed is removed.
    Raises StorageError if it can't be written; nothing is left behind then.
    """
    temporary = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            while True:
                temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
                with temporary.open("xb") as file:
                    if not _hold(file) or not os.fstat(file.fileno()).st_nlink:
                        continue  # taken for one left behind, in the moment before it was held
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    if fcntl is None:
                        file.close()
                    os.replace(temporary, path)
                return
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise StorageError(
            f"{path} can't be written ({error.strerror or error}). "
            "Free some space or choose another folder (ZOO_CACHE for the cache)."
        ) from error


def _hold(file: BinaryIO) -> bool:
    """Lock a file for as long as it is open: the system releases it when the process dies, however it does."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left behind that were killed; those that still write hold their files."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]+\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if pattern.fullmatch(name):
                _remove_unless_held(path.with_name(name))


def _remove_unless_held(temporary: Path) -> None:
    with suppress(OSError, CorruptWeightsError):
        if temporary.is_symlink():
            temporary.unlink()
            return
        with open_regular(temporary) as file:
            if not _hold(file):
                return
            if fcntl is None:
                file.close()
            temporary.unlink()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one: a pipe would let the reader wait for ever, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(f"{printable(str(path))} is no regular file")
    return file


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def reason_of(error: Exception) -> str:
    """Why a file can't be read or written, from an error that says it."""
    return (isinstance(error, OSError) and error.strerror) or printable(str(error)) or type(error).__name__


def sha256(path: str | Path, progress: bool = False, start: int = 0) -> str:
    """SHA-256 of a file from byte `start` on, in hexadecimal; `progress` shows a bar when stderr is a terminal."""
    path = Path(path)
    digest = hashlib.sha256()
    hidden = None if progress else True  # tqdm: None means hidden unless on a terminal
    with (
        open_regular(path) as file,
        tqdm(
            total=size_of(file),
            desc=f"checking {printable(path.name)}",
            unit="B",
            unit_scale=True,
            leave=None,
            disable=hidden,
        ) as bar,
    ):
        file.seek(start)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file. start, end: of its data, counted from where all data begins."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands in front of a safetensors file.

    raw: its bytes. metadata: texts. data: where the tensors' data begins. content: SHA-256 of the data, by the
    header's own words; None in files of other writers.
    """

    raw: bytes
    metadata: dict[str, str]
    entries: list[Entry]
    data: int
    content: str | None


def header_digest(path: str | Path) -> str:
    """SHA-256 of the header of a safetensors file, once it is sure that header and file belong together.

    Reads the header only. Raises CorruptWeightsError if the header is damaged, or if the tensors that it
    lists don't cover the rest of the file exactly.
    """
    return hashlib.sha256(read_header(path).raw).hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file carries besides its tensors. Raises CorruptWeightsError as `header_digest`."""
    return read_header(path).metadata


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file. Raises CorruptWeightsError as `header_digest`."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            return header_of(path, file.read, size_of(file))
    except FileNotFoundError as error:
        raise CorruptWeightsError(f"{path} is missing. Get the weights again.") from error
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise _bad_header(path, error) from error


def parse_header(path: Path, buffer: mmap.mmap) -> Header:
    """The same of a file that is in memory already."""
    buffer.seek(0)
    return header_of(path, buffer.read, len(buffer))


def header_of(path: str | Path, read: Callable[[int], bytes], size: int) -> Header:
    """The same of a file of `size` bytes wherever it lies: `read` gives its next ones. path: what errors name."""
    try:
        length = int.from_bytes(read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header of {length} bytes is larger than the file")
        if length > _MAX_HEADER:
            raise ValueError(f"its header of {length} bytes is larger than that of any model")
        raw = read(length)
        metadata, entries = _check_header(raw, size - 8 - length)
    except RecursionError:
        raise _bad_header(path, ValueError("its header is nested")) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _bad_header(path, error) from error
    return Header(raw, metadata, entries, 8 + length, metadata.pop(_CONTENT, None))


def _bad_header(path: str | Path, error: Exception) -> CorruptWeightsError:
    reason = f"an entry has no {error}" if isinstance(error, KeyError) else reason_of(error)
    return CorruptWeightsError(
        f"{path} is damaged or no safetensors file: {reason}. Get it again, or if it lies in the zoo's cache, "
        "remove it to have it made again."
    )


def _check_header(header: bytes, data_size: int) -> tuple[dict[str, str], list[Entry]]:
    with paused_collector():
        listed = json.loads(header.decode(), object_pairs_hook=_unique)
    metadata = listed.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise ValueError("its metadata isn't text")
    if len(listed) > MAX_TENSORS:
        raise ValueError(f"it lists {len(listed)} tensors, more than any model has")
    position = 0
    entries = []
    for name, entry in sorted(listed.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape, shown = entry["data_offsets"], entry["shape"], printable(name)
        # First of all: a product of too many numbers, or of texts, can be as large as one likes.
        if len(shape) > _MAX_DIMENSIONS or any(
            type(number) is not int or not 0 <= number < 1 << 60 for number in (start, end, *shape)
        ):
            raise ValueError(f"the shape or place of {shown} is impossible")
        if start != position:
            raise ValueError(f"the data of {shown} doesn't start where that before it ends")
        kind = entry["dtype"]
        if type(kind) is not str or kind not in _BY_NAME:
            raise ValueError(f"the type of {shown} is {printable(kind)}, which isn't known here")
        if end - start != math.prod(shape) * _BY_NAME[kind].itemsize:
            raise ValueError(f"the data of {shown} doesn't have the size of its shape")
        entries.append(Entry(name, _BY_NAME[kind], tuple(shape), start, end))
        position = end
    if position != data_size:
        raise ValueError(f"it should hold {position} bytes of tensors and holds {data_size}")
    return metadata, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name is there twice")  # two readers would take two different ones
    return entries


# --------------------------------------------------------------------------------------------- records


def record_path(path: Path) -> Path:
    """Where the record of a weights file is."""
    return path.with_name(path.name + ".json")


def write_record(path: Path, *, variant: str, kind: str, location: str, source_sha256: str) -> None:
    """Write the record of a finished weights file.

    kind, location: where the weights came from, such as "url" and the URL.
    source_sha256: of the file that was downloaded or read, before any conversion.
    """
    try:
        version = importlib.metadata.version("pretext-zoo")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "source"
    write_json(
        record_path(path),
        {
            "variant": variant,
            "source": {"kind": kind, "location": location},
            "source_sha256": source_sha256,
            "sha256": sha256(path),
            "header_sha256": header_digest(path),
            "not_finite": _not_finite(path),
            "size": path.stat().st_size,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "zoo_version": version,
        },
    )


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # A sum is quick and takes no memory. Of large numbers it may be infinite too: only then all are looked at.
    return not value.is_floating_point() or bool(value.float().sum().isfinite() or value.float().isfinite().all())


def _not_finite(path: Path) -> list[str]:
    """Names of a file's tensors that hold NaN or infinity, for its record: to look takes longer than to load them."""
    header = read_header(path)
    with open_regular(path) as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants writable memory
    names = []
    for entry in header.entries:
        if entry.end > entry.start:
            place, size = header.data + entry.start, entry.end - entry.start
            flat = torch.frombuffer(buffer, dtype=torch.uint8, offset=place, count=size)
            if place % entry.dtype.itemsize:  # of another writer, whose header has any length
                flat = flat.clone()
            if not is_finite(flat.view(entry.dtype)):
                names.append(entry.name)
    return names


def recorded_not_finite(path: Path) -> list[str] | None:
    """What the record of a weights file says of it; None if it says nothing of this very content."""
    with suppress(CorruptWeightsError):
        # Without a digest of the content in it, a header may be that of other weights.
        if record_path(path).is_file() and read_header(path).content is not None:
            names = check_quick(path).get("not_finite")
            if type(names) is list and all(type(name) is str for name in names):
                return names
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a weights file, or None if it has none.

    Raises CorruptWeightsError for a damaged one, or one that isn't the zoo's.
    """
    return read_json(record_path(path))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    with atomic_writer(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file's dictionary, or None if there is no such file. Raises CorruptWeightsError for any other."""
    try:
        with open_regular(path) as file:
            if size_of(file) > _MAX_JSON:
                raise ValueError(f"{size_of(file)} bytes")
            content = json.loads(file.read().decode().removeprefix("\ufeff"))  # bytes might be of any encoding
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptWeightsError(
            f"{path} can't be read ({reason_of(error)}). Remove it and the file beside it."
        ) from error
    if not isinstance(content, dict):
        raise CorruptWeightsError(f"{path} isn't a record of the zoo. Remove it and the file beside it.")
    return content


def remove_record(path: Path) -> None:
    """Remove the record of a weights file that is about to be replaced: the new one isn't what it describes.

    Raises StorageError if it can't be removed.
    """
    record = record_path(path)
    try:
        record.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{record} can't be removed ({reason_of(error)}). Remove it yourself.") from error


def check_record(path: Path, record: dict[str, Any]) -> None:
    """Whether a weights file's record says what records say (see `write_record`).

    Raises CorruptWeightsError if it doesn't.
    """
    source = record.get("source")
    texts = [record.get(key) for key in ("variant", "sha256", "header_sha256")]
    if isinstance(source, dict):
        texts += [source.get("kind"), source.get("location")]
    if not isinstance(source, dict) or not all(isinstance(text, str) for text in texts):
        raise CorruptWeightsError(f"{record_path(path)} isn't a record of the zoo. Remove it and the file beside it.")


def check_quick(path: Path) -> dict[str, Any]:
    """Compare a weights file's size and header with its record, which is returned. Reads the header only.

    Raises CorruptWeightsError if they differ or if there is no record.
    """
    record = read_record(path)
    if record is None:
        raise CorruptWeightsError(f"{path} has no record beside it. Remove it to have it made again.")
    check_record(path, record)
    header = header_digest(path)
    size = path.stat().st_size
    if (size, header) != (record.get("size"), record.get("header_sha256")):
        raise CorruptWeightsError(f"{path} isn't the file that its record describes. Remove it to have it made again.")
    return record


def check_content(path: Path, progress: bool = False) -> str:
    """Compare a weights file's content with the digest that its header names, if it does; SHA-256 of the whole file.

    Raises CorruptWeightsError if they differ.
    """
    header = read_header(path)
    digest = sha256(path, progress)
    if header.content is not None and sha256(path, start=header.data) != header.content:
        raise CorruptWeightsError(
            f"{path} has changed since it was written: its tensors aren't those that its header was written for. "
            "Get it again."
        )
    return digest


def check_full(path: Path, progress: bool = False) -> dict[str, Any]:
    """`check_quick`, and SHA-256 of the whole file."""
    record = check_quick(path)
    if sha256(path, progress) != record.get("sha256"):
        raise CorruptWeightsError(
            f"{path} has changed since it was written: its SHA-256 isn't the recorded one. "
            "Remove it to have it made again."
        )
    return record
