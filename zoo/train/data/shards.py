"""Images in the tar shards of WebDataset, map-style, so that a run can be resumed anywhere."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from zoo.errors import DataError
from zoo.models.making.arguments import MAX_CLASSES
from zoo.photos import MAX_BYTES, read_image
from zoo.weights import cache_dir, save_safetensors
from zoo.weights.disk import safetensors_format

_logger = logging.getLogger("zoo")

MAX_SHARDS = 1_000_000

WINDOW = 16
"""Shards whose samples are shuffled together."""


class ImageShards:
    """Images in the tar shards of WebDataset: members KEY.jpg (or .png, .webp...) and, for labels, KEY.cls.

    path: a shard, a folder of them, or a pattern such as "train-{0000..1023}.tar" or "train-*.tar"; files that each
    machine can read. The places of all members are looked up once and kept in the cache. Read with Python's own
    tarfile: webdataset itself gives streams, which can't be resumed in the middle, and unpickles members.
    Raises DataError (a ValueError).
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.paths = _find_shards(path)
        self.index, self.ends = _shard_index(self.paths)
        if not len(self.index):
            raise DataError(f"The shards {path} have no images; they need members such as KEY.jpg.")
        labels = self.index[:, 2]
        self.num_classes = int(labels.max()) + 1 if labels.min() >= 0 else 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        offset, size, label = self.index[index].tolist()
        shard = self.paths[int(np.searchsorted(self.ends, index, side="right"))]
        with open(shard, "rb") as file:
            file.seek(offset)
            content = file.read(size)
        sample: dict[str, Any] = dict(image=read_image(f"The member at byte {offset} of {shard}", content))
        return {**sample, "label": label} if self.num_classes else sample

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation that reads a few shards at a time: shards at random, and the samples of `WINDOW` of them."""
        starts = np.concatenate(([0], self.ends))
        shards = generator.permutation(len(self.paths))
        windows = []
        for first in range(0, len(shards), WINDOW):
            window = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[first : first + WINDOW]])
            windows.append(generator.permutation(window))
        return np.concatenate(windows)


def _find_shards(path: str) -> list[str]:
    if Path(path).is_dir():
        path = os.path.join(glob.escape(path), "*.tar")
    patterns = [path]
    if "{" in path:
        try:
            from braceexpand import braceexpand
        except ModuleNotFoundError as error:
            raise DataError(
                f"The pattern {path} needs the package braceexpand; get it with pip install 'pretext-zoo[data]', or "
                "write * for the numbers."
            ) from error
        if _count_expansions(path) > MAX_SHARDS:  # before they are all made
            raise DataError(f"The pattern {path} stands for more than {MAX_SHARDS:,} shards; name fewer.")
        patterns = list(braceexpand(path))
    found = [shard for pattern in patterns for shard in sorted(glob.glob(pattern))]
    missing = [pattern for pattern in patterns if not glob.glob(pattern)]
    if missing:
        raise DataError(f"There is no shard {missing[0]}; give local .tar files, a folder of them or a pattern.")
    return found


def _count_expansions(pattern: str) -> int:
    """How many names a pattern with braces stands for, at most (braces within braces count as if beside them)."""
    count = 1
    while (group := re.search(r"\{([^{}]*)\}", pattern)) is not None:
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", group[1])
        count *= abs(int(span[1][:30]) - int(span[2][:30])) + 1 if span else group[1].count(",") + 1
        pattern = pattern[: group.start()] + pattern[group.end() :]
    return count


def _shard_index(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Byte offset, size and label (-1: none) of each image, int64 (N, 3), and the number of images up to each
    shard's end; from the cache, if the shards are those of the last time."""
    states = [(os.path.abspath(path), os.path.getsize(path), os.stat(path).st_mtime_ns) for path in paths]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:24]
    cached = cache_dir() / "shards" / f"{digest}.safetensors"
    if cached.exists():
        try:
            return _read_index(cached, [size for _, size, _ in states])
        except (OSError, ValueError, SafetensorError) as error:
            _logger.warning("The index %s is damaged (%s); it is made anew.", cached, str(error).partition("\n")[0])
    with ThreadPoolExecutor(8) as threads:
        rows = list(tqdm(threads.map(_index_shard, paths), "indexing shards", len(paths), disable=None))
    index, ends = np.concatenate(rows), np.cumsum([len(part) for part in rows])
    save_safetensors(dict(index=torch.from_numpy(index), ends=torch.from_numpy(ends)), cached, {})
    return index, ends


def _read_index(cached: Path, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What was kept of shards of these sizes. Raises OSError, ValueError or SafetensorError if it can't be theirs."""
    safetensors_format.header_digest(cached)
    with safe_open(cached, "np") as file:
        index, ends = file.get_tensor("index"), file.get_tensor("ends")
    if index.dtype != np.int64 or index.shape[1:] != (3,) or ends.dtype != np.int64 or ends.shape != (len(sizes),):
        raise ValueError("it is no index of these shards")
    counts = np.diff(ends, prepend=0)
    if (counts < 0).any() or ends[-1] != len(index):
        raise ValueError("its counts are impossible")
    offsets, lengths, labels = index.T
    if (offsets < 0).any() or (lengths < 0).any() or (offsets > np.repeat(sizes, counts) - lengths).any():
        raise ValueError("its places are outside of the shards")
    if len(labels) and not -1 <= labels.min() <= labels.max() < MAX_CLASSES:
        raise ValueError("its labels are impossible")
    return index, ends


_FIELDS = {"cls", *(extension[1:] for extension in IMG_EXTENSIONS)}


def _index_shard(path: str) -> np.ndarray:
    images: dict[str, tuple[int, int]] = {}  # offset and size, by the sample's key
    labels: dict[str, int] = {}
    unused: Counter[str] = Counter()  # by their endings
    try:
        if not os.path.isfile(path):
            raise ValueError("it is no regular file")
        whole = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isfile():
                    continue
                stem, _, field = name.partition(".")
                if "." in field and field.rpartition(".")[2].lower() in _FIELDS:  # a key with dots, such as img.v2.jpg
                    stem, _, field = name.rpartition(".")
                key, extension = f"{folder}/{stem}", f".{field.lower()}"
                if extension in IMG_EXTENSIONS:
                    if key in images:
                        raise DataError(f"{path} has two images called {key.lstrip('/')}; write it anew.")
                    _check_member(member, MAX_BYTES, whole)
                    images[key] = member.offset_data, member.size
                elif field.lower() == "cls":
                    _check_member(member, 64, whole)
                    content = tar.extractfile(member)
                    assert content is not None  # of a file there is some
                    labels[key] = int(content.read())
                    if not -1 <= labels[key] < MAX_CLASSES:
                        raise ValueError(
                            f"the label {labels[key]} of {key.lstrip('/')} is beyond {MAX_CLASSES:,} classes"
                        )
                else:
                    unused[f".{field}" if field else "without an ending"] += 1
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no tar shard of images that can be read ({error}); it must be uncompressed and whole, with "
            "whole numbers in .cls."
        ) from error
    unused["labels without an image"] = len(labels.keys() - images.keys())
    if told := [f"{count:,} {what}" for what, count in unused.most_common(5) if count]:
        _logger.info("%s: not used are %s", path, ", ".join(told))
    return np.array([(*place, labels.get(key, -1)) for key, place in images.items()], np.int64).reshape(-1, 3)


def _check_member(member: tarfile.TarInfo, most: int, whole: int) -> None:
    """Raise ValueError unless a member's bytes lie in the shard as they are, and are no more than it needs."""
    if member.issparse():
        raise ValueError(f"{member.name!r} is stored with holes, as GNU tar does with --sparse")
    if member.size > most or member.offset_data + member.size > whole:
        raise ValueError(f"{member.name!r} has {member.size:,} bytes, and the shard {whole:,}")
