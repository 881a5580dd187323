"""Pairs of photos on disk, in the formats of the CroCo reference and as a plain list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import DataError
from zoo.photos import read_image
from zoo.train.data.lists import read_lines, split_fields


class _PairList:
    """One list file; its lines stay bytes in an array, since millions of Paths would fill each process's memory."""

    def __init__(self, path: Path) -> None:
        lines = read_lines(path)
        self.path = path
        if not lines:
            raise DataError(f"The list of pairs {path} is empty; write one pair a line.")
        if path.name != "listing.txt":
            for number, line in lines:
                if len(fields := split_fields(line, (2,))) != 2:
                    raise DataError(
                        f"Line {number} of {path} names {len(fields)} images; write two a line, 'img1 img2', and names "
                        "with spaces in double quotes."
                    )
        self.lines = np.array([os.fsencode(line) for _, line in lines])

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> tuple[Path, Path]:
        line, folder = os.fsdecode(self.lines[index]), self.path.parent
        listing = self.path.name == "listing.txt"
        first, second = (f"{line}_1.jpg", f"{line}_2.jpg") if listing else split_fields(line, (2,))
        return folder / first, folder / second


def find_lists(root: str | Path) -> list[Path]:
    """The lists of pairs that `root` means: a list file, a folder with one in it, or a folder of such folders.

    pairs.txt: lines "img1 img2" (habitat_release). listing.txt: lines "x", meaning x_1.jpg and x_2.jpg (the
    real datasets of CroCo v2). Paths are relative to the list's folder. Raises DataError (a ValueError).
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"There is no training data at {root}; give a folder or list of pairs with --data.")
    lists = [root / name for name in ("pairs.txt", "listing.txt") if (root / name).is_file()]
    if not lists:
        lists = sorted([*root.glob("*/pairs.txt"), *root.glob("*/listing.txt")])
    if not lists:
        raise DataError(
            f"{root} has no list of pairs; it needs a pairs.txt (lines 'img1 img2') or a listing.txt (lines 'x' for "
            "x_1.jpg, x_2.jpg), or subfolders with one."
        )
    return lists


class ImagePairs:
    """Map-style dataset of photo pairs; `path` is one of `find_lists`' roots, or several joined by commas."""

    def __init__(self, path: str | Path) -> None:
        self.lists = [_PairList(found) for root in str(path).split(",") for found in find_lists(root.strip())]
        self.ends = np.cumsum([len(pairs) for pairs in self.lists])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def paths(self, index: int) -> tuple[Path, Path]:
        """The two files of a pair."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.lists[which][index - int(self.ends[which])]  # from the list's end

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, second = self.paths(index)
        return dict(image1=read_image(first), image2=read_image(second))
