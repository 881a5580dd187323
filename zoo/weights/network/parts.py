"""A download on its way: it grows as `NAME.part`, and takes its name once it is what was expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from zoo.errors import DownloadError, StorageError, ZooError
from zoo.weights.disk.files import sha256
from zoo.weights.network.reach import HINT


@contextmanager
def saving(url: str, path: Path) -> Iterator[None]:
    """Tell the user about a disk that is full or can't be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise StorageError(
            f"{url} can't be saved to {path} ({error.strerror or error}). Free some space or set ZOO_CACHE to another "
            "folder."
        ) from error


def part_of(path: Path) -> Path:
    """Where a download grows; what lies there and isn't a file of its own is removed."""
    part = path.with_name(path.name + ".part")
    keep_if_plain(part)
    return part


def open_part(part: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "r+b")


def keep_if_plain(part: Path) -> None:
    """Remove what lies there if it is no file, or one that has other names: it would be written to through this one."""
    with suppress(OSError):  # such as a folder, which is told when it can't be written
        found = part.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            part.unlink()


def accept(url: str, part: Path, path: Path, expected_sha256: str | None, progress: bool) -> str:
    """Give a complete download its final name if it is what was expected; returns its SHA-256."""
    _refuse_web_page(url, part)
    digest = sha256(part, progress)
    if expected_sha256 is not None and digest != expected_sha256:
        discard(part)
        raise DownloadError(
            f"{url} isn't the file that was expected: its SHA-256 is {digest} instead of {expected_sha256}. Try again; "
            "if that keeps happening, the file was replaced on the server and shouldn't be used."
        )
    os.replace(part, path)
    state_path(part).unlink(missing_ok=True)
    return digest


def discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    state_path(part).unlink(missing_ok=True)


def state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _refuse_web_page(url: str, part: Path) -> None:
    with part.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        discard(part)
        raise web_page_error(url)


def web_page_error(url: str) -> DownloadError:
    return DownloadError(
        f"{url} is a web page instead of a file, such as a login page or a network's portal. Open it in a "
        "browser to see what it asks for."
    )


def too_large_error(url: str, at_most: int) -> DownloadError:
    return DownloadError(
        f"{url} can't be downloaded: its server sends more than the {at_most} bytes that the file can have, so nothing "
        f"of it was kept. {HINT}"
    )


def progress_bar(name: str, progress: bool, total: int | None = None, initial: int = 0) -> tqdm:
    """A line of its own for each of several downloads; on a terminal only."""
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit="B",
        unit_scale=True,
        leave=None,
        disable=None if progress else True,
    )
