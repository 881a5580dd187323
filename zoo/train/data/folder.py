"""Folders of photos. Lists are kept in arrays, since millions of Paths would fill each process's memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.errors import DataError
from zoo.photos import read_image
from zoo.train.data.lists import read_lines

_logger = logging.getLogger("zoo")


class ImageFolder:
    """Every image below a folder. Where all of them are in subfolders, those are the classes, as in ImageNet.

    path: the folder, or one with a subfolder for each split. split: "train" may be the folder itself. names: a text
    file with the names of the images to take, one a line, such as a semi-supervised share's; default: all.
    Raises DataError (a ValueError).
    """

    def __init__(self, path: str | Path, split: str = "train", names: str | Path | None = None) -> None:
        self.root = _split_folder(Path(path), split)
        listing = list(_list_images(self.root))
        tops = sorted({folder.split(os.sep)[0] for folder, _ in listing})  # a share may lack some of them
        if names is not None:
            listing = _only(listing, Path(names))
        if not listing:
            raise DataError(f"There are no images in {self.root}; it needs files such as x.jpg, in any subfolders.")
        self.folders = np.array([os.fsencode(folder) for folder, _ in listing])
        self.names = np.concatenate([names for _, names in listing])
        self.ends = np.cumsum([len(names) for _, names in listing])
        self.classes = tuple(tops) if "" not in tops and len(tops) > 1 else ()
        self.num_classes = len(self.classes)
        self._labels = [tops.index(folder.split(os.sep)[0]) for folder, _ in listing]

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
    """Every folder with images, relative to `root`, and their names as bytes; sorted, without hidden ones.

    Links to folders are followed, but each folder is listed once: a link may lead to where it lies, or two links to
    the same photos, again and again.
    """
    seen: set[tuple[int, int]] = set()
    again = []
    for place, folders, files in os.walk(root, onerror=_raise_unreadable, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:
            again.append(place)
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # the order of the walk
        names = [name for name in files if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")]
        if names:
            inside = os.path.relpath(place, root)
            yield "" if inside == "." else inside, np.array(sorted(map(os.fsencode, names)))
    if again:
        _logger.warning(
            "%d folders in %s are links to others of it, such as %s; their images are taken once.",
            len(again),
            root,
            again[0],
        )


def _only(listing: list[tuple[str, np.ndarray]], path: Path) -> list[tuple[str, np.ndarray]]:
    """The images of a listing that a file names, each with or without its folder. Raises DataError (a ValueError)."""
    wanted = {os.fsencode(line) for _, line in read_lines(path)}
    kept, found = [], 0
    for folder, names in listing:
        place = os.fsencode(folder)
        chosen = np.array([name for name in names if name in wanted or os.path.join(place, name) in wanted])
        found += len(chosen)
        if len(chosen):
            kept.append((folder, chosen))
    if found != len(wanted):
        raise DataError(
            f"{found:,} images are those of the {len(wanted):,} names in {path}; each name must be of one image, "
            "with or without its folder."
        )
    return kept


def _raise_unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} can't be read ({error.strerror}); check its permissions.") from error
