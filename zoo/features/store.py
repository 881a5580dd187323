"""A folder of features: shards of a fixed number of photos, each whole or not there, and an index of them.

A shard is one tensor `features`, a row a photo, whose header names its photos, those that can't be read, and a digest
of what it was made from: paths, sizes and times of the files. So it needs no other file to be found up to date or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import CorruptWeightsError, FeaturesError, StorageError, printable
from zoo.weights import save_safetensors
from zoo.weights.disk import files

INDEX, LOCK, UNREADABLE = "index.json", "features.lock", "unreadable.jsonl"
TENSOR = "features"
FORMAT = "pretext-zoo features, 1"
_SHARD = re.compile(r"\d{6}\.safetensors")
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")  # of a writer that was killed
_MOST_SHARDS = 20_000  # the index is written after each of them
_logger = logging.getLogger("zoo")

Unreadable = list[tuple[str, str]]
"""Names of photos, each with the reason why it can't be read."""


def shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def check_place(output: Path, folder: Path) -> None:
    """Raise StorageError or FeaturesError unless `folder` can take shards, and `output`, if it is another, be a file.

    Leaves nothing behind.
    """
    if output != folder and output.exists() and not output.is_file():
        raise FeaturesError(f"{printable(str(output))} is no file that could be written; choose another --output.")
    place = folder
    try:
        if folder.is_dir() and not all(_is_ours(name) for name in os.listdir(folder) if not name.startswith(".")):
            raise FeaturesError(
                f"{printable(str(folder))} holds other files; choose an empty or a new folder as --output."
            )
        while not os.path.lexists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise StorageError(
            f"{printable(str(output))} can't be written ({error.strerror or error}). Free some space or choose another "
            "--output."
        ) from error


def _is_ours(name: str) -> bool:
    return name in (INDEX, LOCK, UNREADABLE) or _SHARD.fullmatch(name) is not None


class Store:
    """The shards of `photos` in a folder. settings: what they are made with; those of another kind are not mixed.

    Raises FeaturesError (a RuntimeError) for too many shards.
    """

    def __init__(self, folder: Path, photos: list[str], size: int, settings: dict[str, Any]) -> None:
        self.folder, self.photos, self.size = folder, photos, size
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings, "photos_per_shard": size}))
        self.count = -(-len(photos) // size)
        self.entries: dict[int, dict[str, Any]] = {}
        self.shape: tuple[int, ...] = ()
        if self.count > _MOST_SHARDS:
            raise FeaturesError(
                f"{len(photos):,} photos would be {self.count:,} shards, more than {_MOST_SHARDS:,}; choose a larger "
                "--shard-size."
            )

    def photos_of(self, number: int) -> list[str]:
        """Paths of the photos that a shard is of, in the order of the input."""
        return self.photos[number * self.size : (number + 1) * self.size]

    def digest_of(self, number: int) -> str:
        """Of the settings and a shard's files, their paths, sizes and times: another one if any of them is another."""
        digest = hashlib.sha256(json.dumps(self.settings).encode())
        for path in self.photos_of(number):
            try:
                about = os.stat(path)
                state = f"{about.st_size} {about.st_mtime_ns}"
            except OSError:
                state = "not there"
            digest.update(os.fsencode(path) + b"\0" + state.encode() + b"\0")
        return digest.hexdigest()

    @property
    def readable(self) -> int:
        return sum(entry["photos"] for entry in self.entries.values())

    @property
    def unreadable(self) -> int:
        return sum(entry["unreadable"] for entry in self.entries.values())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, made if need be, as long as this lasts.

        Raises FeaturesError if another process holds it, or if it holds features of other settings.
        """
        shown = printable(str(self.folder))
        lock = FileLock(self.folder / LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / LOCK).is_symlink():  # what it leads to would be emptied
                (self.folder / LOCK).unlink()
            lock.acquire(timeout=0)
        except Timeout:
            raise FeaturesError(
                f"Another process is writing features into {shown}; wait until it ends, or choose another --output."
            ) from None
        except NotImplementedError:
            _logger.warning("%s can't be locked on this file system; start no second run into it.", shown)
        except OSError as error:
            raise StorageError(
                f"{shown} can't be written ({error.strerror or error}). Free some space or choose another --output."
            ) from error
        try:
            self._check_settings(shown)
            yield
        finally:
            lock.release()

    def _check_settings(self, shown: str) -> None:
        try:
            before = files.read_json(self.folder / INDEX)
        except CorruptWeightsError as error:
            raise FeaturesError(
                f"The index of {shown} is damaged; remove the folder, or choose another --output."
            ) from error
        if before is None:
            return
        other = [key for key, value in self.settings.items() if before.get(key) != value]
        if other:
            raise FeaturesError(
                f"{shown} holds features of other settings ({', '.join(other).replace('_', ' ')}); remove it, or "
                "choose another --output."
            )

    def begin(self, shape: tuple[int, ...], strict: bool) -> list[int]:
        """Take what is there and up to date, remove what is of no photo any more; numbers of the shards to be made.

        shape: of a photo's features. strict: a shard with unreadable photos is to be made again.
        """
        self.shape = shape
        for number in range(self.count):
            entry = self._entry_of(number)
            if entry is not None and not (strict and entry["unreadable"]):
                self.entries[number] = entry
        for path in self.folder.iterdir():
            if _SHARD.fullmatch(path.name) and int(path.stem) >= self.count:
                path.unlink()
        self._write_index(finished=False)
        self._rewrite_unreadable()
        return [number for number in range(self.count) if number not in self.entries]

    def _entry_of(self, number: int) -> dict[str, Any] | None:
        """A shard's line in the index, if there is one that is whole and up to date."""
        path = self.folder / shard_name(number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                about, found = file.metadata(), tuple(file.get_slice(TENSOR).get_shape())
                if about["input"] != self.digest_of(number) or found[1:] != self.shape:
                    return None
                return _entry(number, found[0], len(json.loads(about["unreadable"])))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            _logger.warning("%s is damaged; it is made again.", printable(str(path)))
            return None

    def save(self, number: int, digest: str, names: list[str], rows: Tensor, unreadable: Unreadable) -> None:
        """Write a shard, whole or not at all, then its line of the index. digest: of before its photos were read."""
        about = {"names": json.dumps(names), "unreadable": json.dumps(unreadable), "input": digest}
        save_safetensors({TENSOR: rows}, self.folder / shard_name(number), {"format": "pt", **about})
        self.entries[number] = _entry(number, len(names), len(unreadable))
        self._write_index(finished=False)
        if unreadable:
            with open(self.folder / UNREADABLE, "a", encoding="utf-8") as file:
                file.writelines(_line(*one) for one in unreadable)

    def finish(self) -> None:
        """Write the index of what is complete, and unreadable photos in the order of the input."""
        self._rewrite_unreadable()
        self._write_index(finished=True)

    def first_reason(self) -> str:
        """Why the first unreadable photo can't be read."""
        return json.loads(next(iter(self._lines(0))))["reason"]

    def _lines(self, number: int) -> Iterator[str]:
        with safe_open(self.folder / shard_name(number), "pt") as file:
            for name, reason in json.loads(file.metadata()["unreadable"]):
                yield _line(name, reason)

    def _rewrite_unreadable(self) -> None:
        path = self.folder / UNREADABLE
        lines = [line for n, entry in sorted(self.entries.items()) if entry["unreadable"] for line in self._lines(n)]
        if not lines:
            path.unlink(missing_ok=True)
            return
        with files.atomic_writer(path) as file:
            file.write("".join(lines).encode())

    def _write_index(self, finished: bool) -> None:
        shards = [self.entries[number] for number in sorted(self.entries)]
        index = {**self.settings, "shape": self.shape, "input_photos": len(self.photos), "finished": finished}
        files.write_json(self.folder / INDEX, {**index, "shards": shards})

    def merge(self, output: Path, metadata: dict[str, str]) -> None:
        """Write all features into one file, a tensor a photo under its name, and unreadable ones beside it."""
        save_safetensors(_Rows(self), output, metadata)
        beside = unreadable_beside(output)
        if (self.folder / UNREADABLE).is_file():
            os.replace(self.folder / UNREADABLE, beside)
        else:
            beside.unlink(missing_ok=True)

    def has_shards(self) -> bool:
        return any(_SHARD.fullmatch(path.name) for path in self.folder.iterdir())

    def remove(self) -> None:
        """Remove what `zoo features` has written into the folder, and the folder if it is empty then."""
        for path in self.folder.iterdir():
            if _is_ours(path.name) or _is_ours(_LEFTOVER.sub(r"\1", path.name)):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class _Rows(Mapping[str, Tensor]):
    """Rows of all shards by their photos' names, read from disk when they are looked at."""

    def __init__(self, store: Store) -> None:
        self._places: dict[str, tuple[np.ndarray, int]] = {}
        for number in range(store.count):
            path = store.folder / shard_name(number)
            with safe_open(path, "pt") as file:
                names = json.loads(file.metadata()["names"])
            with path.open("rb") as raw:
                start = 8 + int.from_bytes(raw.read(8), "little")  # behind the header; there is one tensor
            if names:
                shape = (len(names), *store.shape)
                rows = np.memmap(path, np.float32, "c", start, shape)  # "c": torch takes no read-only arrays
                self._places.update({name: (rows, row) for row, name in enumerate(names)})

    def __getitem__(self, name: str) -> Tensor:
        rows, row = self._places[name]
        return torch.from_numpy(rows[row])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def unreadable_beside(output: Path) -> Path:
    """Where the unreadable photos of a single file are listed."""
    return output.with_name(f"{output.stem}.{UNREADABLE}")


def _entry(number: int, photos: int, unreadable: int) -> dict[str, Any]:
    return {"file": shard_name(number), "photos": photos, "unreadable": unreadable}


def _line(name: str, reason: str) -> str:
    return json.dumps({"photo": name, "reason": reason}, ensure_ascii=False) + "\n"
