"""The safetensors format: headers read with suspicion, files written so that equal contents give equal bytes."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import CorruptWeightsError, StorageError, ZooError, printable
from zoo.weights.collector import paused_collector
from zoo.weights.disk.files import atomic_writer, open_regular, reason_of, size_of

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
        if math.prod(side for side in shape if side) >= 1 << 60:  # torch counts strides even where there is nothing
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
