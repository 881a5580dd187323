"""Images in the tar shards of WebDataset, map-style, so that a run can be resumed anywhere."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from zoo.errors import DataError
from zoo.photos import read_image
from zoo.weights import cache_dir, save_safetensors

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
        patterns = list(braceexpand(path))
    found = [shard for pattern in patterns for shard in sorted(glob.glob(pattern))]
    missing = [pattern for pattern in patterns if not glob.glob(pattern)]
    if missing:
        raise DataError(f"There is no shard {missing[0]}; give local .tar files, a folder of them or a pattern.")
    return found


def _shard_index(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Byte offset, size and label (-1: none) of each image, int64 (N, 3), and the number of images up to each
    shard's end; from the cache, if the shards are those of the last time."""
    states = [(os.path.abspath(path), os.path.getsize(path), os.stat(path).st_mtime_ns) for path in paths]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:24]
    cached = cache_dir() / "shards" / f"{digest}.safetensors"
    if not cached.exists():
        with ThreadPoolExecutor(8) as threads:
            rows = list(tqdm(threads.map(_index_shard, paths), "indexing shards", len(paths), disable=None))
        ends = np.cumsum([len(part) for part in rows])
        tensors = dict(index=torch.from_numpy(np.concatenate(rows)), ends=torch.from_numpy(ends))
        save_safetensors(tensors, cached, {})
    with safe_open(cached, "np") as file:
        return file.get_tensor("index"), file.get_tensor("ends")


def _index_shard(path: str) -> np.ndarray:
    images: dict[str, tuple[int, int]] = {}  # offset and size, by the sample's key
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, field = name.partition(".")
                key, extension = f"{folder}/{stem}", f".{field.lower()}"
                if not member.isfile():
                    continue
                if extension in IMG_EXTENSIONS:
                    if key in images:
                        raise DataError(f"{path} has two images called {key.lstrip('/')}; write it anew.")
                    images[key] = member.offset_data, member.size
                elif field == "cls":
                    content = tar.extractfile(member)
                    assert content is not None  # of a file there is some
                    labels[key] = int(content.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no tar shard of images that can be read ({error}); it must be uncompressed and whole, with "
            "whole numbers in .cls."
        ) from error
    return np.array([(*place, labels.get(key, -1)) for key, place in images.items()], np.int64).reshape(-1, 3)
