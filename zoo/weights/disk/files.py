"""Files on disk: written whole or not at all, opened only if they are files, small JSON ones, digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from zoo.errors import CorruptWeightsError, StorageError, ZooError, printable

try:
    import fcntl
except ImportError:  # Windows, where files that are open can't be removed anyway
    fcntl = None  # type: ignore[assignment]

_MAX_JSON = 8_000_000
_CHUNK = 1 << 20


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
