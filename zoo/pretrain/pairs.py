"""Pairs of photos on disk, in the formats of the CroCo reference and as a plain list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.pictures import read_image


def list_pairs(root: str | Path) -> list[tuple[Path, Path]]:
    """All pairs below `root`: a list file, a folder with a list in it, or a folder of such folders.

    pairs.txt: lines "img1 img2" (habitat_release). listing.txt: lines "x", meaning x_1.jpg and x_2.jpg (the
    real datasets of CroCo v2). Paths are relative to the list's folder. Raises DataError (a ValueError).
    """
    root = Path(root)
    if root.is_file():
        return _read_list(root)
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
    return [pair for path in lists for pair in _read_list(path)]


def _read_list(path: Path) -> list[tuple[Path, Path]]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    folder = path.parent
    if not lines:
        raise DataError(f"The list of pairs {path} is empty; write one pair a line.")
    if path.name == "listing.txt":
        return [(folder / f"{line}_1.jpg", folder / f"{line}_2.jpg") for line in lines]
    pairs = [line.split() for line in lines]
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2:
            raise DataError(f"Line {number} of {path} names {len(pair)} images; write two, 'img1 img2'.")
    return [(folder / first, folder / second) for first, second in pairs]


class ImagePairs:
    """Map-style dataset of photo pairs; `path` is one of `list_pairs`' roots, or several joined by commas."""

    def __init__(self, path: str | Path) -> None:
        self.pairs = [pair for root in str(path).split(",") for pair in list_pairs(root.strip())]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, second = self.pairs[index]
        return dict(image1=read_image(first), image2=read_image(second))
