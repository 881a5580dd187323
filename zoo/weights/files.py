"""Weights files on disk: written atomically, with a record beside them, checked quickly or fully.

The record of `model.safetensors` is `model.safetensors.json`: where the weights came from, and size and
digests of the file (see `write_record`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from zoo.errors import CorruptWeightsError, StorageError, ZooError

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
_ITEM_SIZES = {name: dtype.itemsize for dtype, name in _DTYPES.items()}

# The format allows 100 MB, which could say `[[],[],...` and take 3 GB to parse; a large model's is 0.1 MB.
_MAX_HEADER = 8_000_000
_MAX_DIMENSIONS = 64  # torch's limit
_CHUNK = 1 << 20


def save_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`, whole or not at all; the same content gives the same bytes.

    safetensors' own writer orders metadata at random, so that equal contents would have different digests.
    This one sorts everything, and holds one tensor at a time.

    Raises StorageError if the file can't be written (full disk, missing permission).
    """
    # Wide elements first: every tensor's data is aligned, whatever its neighbors' sizes.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_writer(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` once it is written and on disk; until then it has another name.

    Raises StorageError if it can't be written; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise StorageError(
            f"{path} can't be written ({error.strerror or error}). "
            "Free some space or choose another folder (ZOO_CACHE for the cache)."
        ) from error


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left behind that were killed. Only for whoever holds the file's lock."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def sha256(path: str | Path, progress: bool = False) -> str:
    """SHA-256 of a file, in hexadecimal; `progress` shows a bar when stderr is a terminal."""
    path = Path(path)
    digest = hashlib.sha256()
    hidden = None if progress else True  # tqdm: None means hidden unless on a terminal
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"checking {path.name}",
            unit="B",
            unit_scale=True,
            leave=None,
            disable=hidden,
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def header_digest(path: str | Path) -> str:
    """SHA-256 of the header of a safetensors file, once it is sure that header and file belong together.

    Reads the header only. Raises CorruptWeightsError if the header is damaged, or if the tensors that it
    lists don't cover the rest of the file exactly.
    """
    return hashlib.sha256(_read_header(Path(path))).hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file carries besides its tensors. Raises CorruptWeightsError as `header_digest`."""
    return json.loads(_read_header(Path(path))).get("__metadata__", {})


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header of {length} bytes is larger than the file")
            if length > _MAX_HEADER:
                raise ValueError(f"its header of {length} bytes is larger than that of any model")
            header = file.read(length)
        _check_header(header, size - 8 - length)
    except FileNotFoundError as error:
        raise CorruptWeightsError(f"{path} is missing. Get the weights again.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"an entry has no {error}" if isinstance(error, KeyError) else error
        raise CorruptWeightsError(
            f"{path} is damaged or no safetensors file: {reason}. Get it again, or if it lies in the zoo's cache, "
            "remove it to have it made again."
        ) from error
    return header


def _check_header(header: bytes, data_size: int) -> None:
    entries = json.loads(header.decode(), object_pairs_hook=_unique)
    metadata = entries.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata isn't text")
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape = entry["data_offsets"], entry["shape"]
        # First of all: a product of too many numbers, or of texts, can be as large as one likes.
        if len(shape) > _MAX_DIMENSIONS or any(
            type(number) is not int or not 0 <= number < 1 << 60 for number in (start, end, *shape)
        ):
            raise ValueError(f"the shape or place of {name} is impossible")
        if start != position:
            raise ValueError(f"the data of {name} doesn't start where that before it ends")
        if entry["dtype"] not in _ITEM_SIZES:
            raise ValueError(f"the type of {name} isn't known here")
        if end - start != math.prod(shape) * _ITEM_SIZES[entry["dtype"]]:
            raise ValueError(f"the data of {name} doesn't have the size of its shape")
        position = end
    if position != data_size:
        raise ValueError(f"it should hold {position} bytes of tensors and holds {data_size}")


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
            "size": path.stat().st_size,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "zoo_version": version,
        },
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a weights file, or None if it has none. Raises CorruptWeightsError for a damaged one."""
    return read_json(record_path(path))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    with atomic_writer(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file's dictionary, or None if there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptWeightsError(f"{path} can't be read ({error}). Remove it and the file beside it.") from error
    if not isinstance(content, dict):
        raise CorruptWeightsError(f"{path} isn't a record of the zoo. Remove it and the file beside it.")
    return content


def check_quick(path: Path) -> dict[str, Any]:
    """Compare a weights file's size and header with its record, which is returned. Reads the header only.

    Raises CorruptWeightsError if they differ or if there is no record.
    """
    record = read_record(path)
    if record is None:
        raise CorruptWeightsError(f"{path} has no record beside it. Remove it to have it made again.")
    header = header_digest(path)
    size = path.stat().st_size
    if (size, header) != (record.get("size"), record.get("header_sha256")):
        raise CorruptWeightsError(f"{path} isn't the file that its record describes. Remove it to have it made again.")
    return record


def check_full(path: Path, progress: bool = False) -> dict[str, Any]:
    """`check_quick`, and SHA-256 of the whole file."""
    record = check_quick(path)
    if sha256(path, progress) != record.get("sha256"):
        raise CorruptWeightsError(
            f"{path} has changed since it was written: its SHA-256 isn't the recorded one. "
            "Remove it to have it made again."
        )
    return record
