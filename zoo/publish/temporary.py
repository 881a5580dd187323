"""Where what is to be published is put together: a temporary folder that a killed `zoo push` doesn't leave for ever."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from zoo.errors import StorageError

_PREFIX = "pretext-zoo-push-"


@contextmanager
def workspace() -> Iterator[Path]:
    """An empty folder, gone afterwards. Those of the user's that nobody works in any more are removed first.

    Raises StorageError where no temporary folder can be made.
    """
    try:
        _remove_abandoned(Path(tempfile.gettempdir()))
        place, lock = _held_folder()
    except OSError as error:
        raise StorageError(
            f"No temporary folder can be made ({error.strerror or error}); free some space or set TMPDIR to another."
        ) from error
    try:
        inside = place / "folder"
        inside.mkdir()
        yield inside
    finally:
        lock.release()
        shutil.rmtree(place, ignore_errors=True)


def _held_folder() -> tuple[Path, FileLock]:
    while True:
        place = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = FileLock(place / "lock")
        with suppress(FileNotFoundError):
            lock.acquire()
            if (place / "lock").exists():
                return place, lock
            lock.release()  # taken for an abandoned one, in the moment before it was held


def _remove_abandoned(temporary: Path) -> None:
    with suppress(OSError):
        for entry in os.scandir(temporary):
            about = entry.stat(follow_symlinks=False)
            mine = not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
            lock = Path(entry.path) / "lock"
            if entry.name.startswith(_PREFIX) and mine and stat.S_ISDIR(about.st_mode) and lock.is_file():
                with suppress(Timeout, OSError), FileLock(lock, timeout=0):
                    shutil.rmtree(entry.path, ignore_errors=True)
