"""Features that `zoo features` has written, read as one array, whatever number of files they are in."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import FeaturesError, ZooError, printable
from zoo.features.store import INDEX, TENSOR, UNREADABLE, shard_name, unreadable_beside
from zoo.weights.disk import files


def open_features(path: str | Path) -> Features:
    """What `zoo features` has written: a folder of shards, also while it is being filled, or a .safetensors file.

    Raises FeaturesError (a RuntimeError) for what is neither, or damaged.
    """
    path = Path(path)
    with _readable(path):
        return _Shards(path) if path.is_dir() else _OneFile(path)


class Features:
    """Rows of features, a row a photo, read from disk when they are looked at; a map-style data set, too.

    names: of the photos, in the order of the rows: a folder has that of the input, a single file that of the names.
    shape: of a row, (C,) or (C, h, w). about: what they were made with. finished: whether all photos have been tried.

    >>> features = open_features("features/")
    >>> features[3]                # or features["photos/a.jpg"]: a tensor of features.shape
    >>> matrix = features.tensor() # all of them in memory, (N, C)
    """

    path: Path
    names: list[str]
    shape: tuple[int, ...]
    about: dict[str, Any]
    finished: bool

    def __len__(self) -> int:
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[list[str], Tensor]]:
        """Names and features (n, ...) of a shard after the other, as they lie on disk."""
        raise NotImplementedError

    def _row(self, number: int) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, which: int | str) -> Tensor:
        """A row by its number or its photo's name. Raises IndexError, KeyError, FeaturesError."""
        number = self._numbers[which] if isinstance(which, str) else which
        if not -len(self) <= number < len(self):
            raise IndexError(f"There are {len(self):,} rows, and no row {number}.")
        with _readable(self.path):
            return self._row(number % len(self))

    def __iter__(self) -> Iterator[Tensor]:
        for _, rows in self.blocks():
            yield from rows

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def tensor(self) -> Tensor:
        """All rows in memory, (N, ...)."""
        rows = torch.empty(len(self), *self.shape)
        start = 0
        for names, block in self.blocks():
            rows[start : start + len(names)] = block
            start += len(names)
        return rows

    def unreadable(self) -> list[tuple[str, str]]:
        """Names of the photos that could not be read, each with the reason."""
        path = self.path / UNREADABLE if self.path.is_dir() else unreadable_beside(self.path)
        if not path.is_file():
            return []
        with _readable(path):
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [(line["photo"], line["reason"]) for line in lines]


class _Shards(Features):
    def __init__(self, path: Path) -> None:
        index = files.read_json(path / INDEX)
        if index is None:
            raise FeaturesError(f"{printable(str(path))} has no {INDEX}; give what `zoo features` wrote.")
        self.path, self.shape, self.finished = path, tuple(index["shape"]), index["finished"]
        self.about = {key: value for key, value in index.items() if key not in ("shape", "finished", "shards")}
        self._files = [path / shard_name(int(shard["file"].partition(".")[0])) for shard in index["shards"]]
        self._ends = list(itertools.accumulate(shard["photos"] for shard in index["shards"]))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @functools.cached_property
    def names(self) -> list[str]:  # type: ignore[override]
        with _readable(self.path):
            return [name for path in self._files for name in _names_of(path)]

    def _row(self, number: int) -> Tensor:
        shard = bisect.bisect_right(self._ends, number)
        start = self._ends[shard - 1] if shard else 0
        with safe_open(self._files[shard], "pt") as file:
            return file.get_slice(TENSOR)[number - start]

    def blocks(self) -> Iterator[tuple[list[str], Tensor]]:
        for path in self._files:
            with _readable(path), safe_open(path, "pt") as file:
                block = json.loads(file.metadata()["names"]), file.get_tensor(TENSOR)
            yield block


def _names_of(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["names"])


class _OneFile(Features):
    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.names, about = sorted(file.keys()), file.metadata() or {}
            self.shape = tuple(file.get_slice(self.names[0]).get_shape()) if self.names else ()
        self.path, self.finished, self.about = path, True, {"model": about.get("variant")}

    def __len__(self) -> int:
        return len(self.names)

    def _row(self, number: int) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(self.names[number])

    def blocks(self) -> Iterator[tuple[list[str], Tensor]]:
        for start in range(0, len(self.names), 256):
            names = self.names[start : start + 256]
            with _readable(self.path), safe_open(self.path, "pt") as file:
                rows = torch.stack([file.get_tensor(name) for name in names])
            yield names, rows


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What is damaged or no features raises FeaturesError."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, FeaturesError):
            raise
        shown, cause = printable(str(path)), "it is damaged" if isinstance(error, ZooError) else printable(str(error))
        if isinstance(error, FileNotFoundError):
            cause = "there is no such file"
        raise FeaturesError(
            f"{shown} can't be read as features ({cause}); give what `zoo features` wrote, or run its command again."
        ) from error
