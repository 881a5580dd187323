"""Single images to train on: folders of photos, Hugging Face `datasets`, WebDataset shards.

All are map-style, so that a run can be resumed anywhere, and keep their lists in arrays, since millions of Paths
would fill each process's memory. `num_classes` is 0 for images without labels; `classes` are the labels' names,
where they have some.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import safe_open
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from zoo.errors import DataError
from zoo.pictures import read_image
from zoo.weights import cache_dir, save_safetensors

WINDOW = 16
"""Shards whose samples are shuffled together."""


class ImageFolder:
    """Every image below a folder. Where all of them are in subfolders, those are the classes, as in ImageNet.

    path: the folder, or one with a subfolder for each split. split: "train" may be the folder itself.
    Raises DataError (a ValueError).
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self.root = _split_folder(Path(path), split)
        listing = list(_list_images(self.root))
        if not listing:
            raise DataError(f"There are no images in {self.root}; it needs files such as x.jpg, in any subfolders.")
        self.folders = np.array([os.fsencode(folder) for folder, _ in listing])
        self.names = np.concatenate([names for _, names in listing])
        self.ends = np.cumsum([len(names) for _, names in listing])
        tops = [folder.split(os.sep)[0] for folder, _ in listing]
        named = sorted(set(tops))
        self.classes = tuple(named) if "" not in named and len(named) > 1 else ()
        self.num_classes = len(self.classes)
        self._labels = [named.index(top) for top in tops]  # of the folders

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        folder = int(np.searchsorted(self.ends, index, side="right"))
        path = self.root / os.fsdecode(self.folders[folder]) / os.fsdecode(self.names[index])
        sample: dict[str, Any] = dict(image=read_image(path))
        return {**sample, "label": self._labels[folder]} if self.classes else sample


def _split_folder(root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    if not root.is_dir():
        raise DataError(f"There is no folder of images {root}; give one with --data.")
    if split != "train":
        raise DataError(f"{root} has no subfolder '{split}'; name another split, or say where its images are.")
    return root


def _list_images(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every folder with images, relative to `root`, and their names as bytes; sorted, without hidden ones."""
    for place, folders, files in os.walk(root, onerror=_raise_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # the order of the walk
        names = [name for name in files if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")]
        if names:
            inside = os.path.relpath(place, root)
            yield "" if inside == "." else inside, np.array(sorted(map(os.fsencode, names)))


def _raise_unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} can't be read ({error.strerror}); check its permissions.") from error


class HubImages:
    """A data set of Hugging Face's `datasets`: one of the Hub, a folder that it saved, or one of parquet files.

    path: its name or folder. name: the configuration, where there are several. image, label: the columns; without
    that of the labels, there are none. Raises DataError (a ValueError).
    """

    def __init__(
        self, path: str, split: str = "train", name: str | None = None, image: str = "image", label: str = "label"
    ) -> None:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise DataError(
                "Hugging Face data needs the package datasets; get it with pip install 'pretext-zoo[data]'."
            ) from error
        try:
            if (Path(path) / "dataset_dict.json").is_file():
                table = datasets.load_from_disk(str(Path(path) / split))
            elif (Path(path) / "state.json").is_file():
                table = datasets.load_from_disk(path)
            else:
                table = datasets.load_dataset(path, name, split=split)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The data set {path} can't be loaded ({error}); check its name or folder and the split '{split}'."
            ) from error
        if image not in table.column_names:
            raise DataError(
                f"The data set {path} has no column '{image}'; set data.image to one of "
                f"{', '.join(table.column_names)}."
            )
        self.path, self.image, self.label = path, image, label
        columns = [image, label] if label in table.column_names else [image]
        # decoded here, so that a damaged image is named
        self.table = table.select_columns(columns).cast_column(image, datasets.Image(decode=False))
        self.classes: tuple[str, ...] = ()
        self.num_classes = 0
        if label in table.column_names:
            self.classes = tuple(getattr(table.features[label], "names", ()))
            self.num_classes = len(self.classes) or 1 + max(table.unique(label))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        image = row[self.image]
        sample = dict(image=read_image(image["path"] or f"Image {index} of {self.path}", image["bytes"]))
        return {**sample, "label": row[self.label]} if self.num_classes else sample


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
