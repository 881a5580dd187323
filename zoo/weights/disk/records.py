"""The record beside a weights file, and what is checked against it, quickly or in full.

The record of `model.safetensors` is `model.safetensors.json`: where the weights came from, and size and
digests of the file (see `write_record`).
"""

from __future__ import annotations

import importlib.metadata
import mmap
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import CorruptWeightsError, StorageError
from zoo.weights.disk.files import open_regular, read_json, reason_of, sha256, write_json
from zoo.weights.disk.safetensors_format import header_digest, read_header


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
