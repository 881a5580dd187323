"""Stereo and flow pairs on disk: public data sets, lists of one's own, and mixtures of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from zoo.errors import DataError
from zoo.photos import PngRows, read_image, read_rows
from zoo.settings import Within
from zoo.train.data.lists import read_lines, split_fields
from zoo.train.data.matching.augment import TRUTHS
from zoo.train.data.matching.maps import read_truth
from zoo.train.data.matching.sets import SETS, Entry, list_pairs

_FIELDS = 5  # of an Entry
_MOST_DRAWS = 1 << 28  # of an epoch, whose order is drawn at once


class MatchingPairs:
    """Map-style dataset of pairs with their truth: image1, image2 (uint8, H, W, 3), and disparity (H, W) or flow
    (H, W, 2), float32, unknown = inf; besides, `set`, the place of the pair's data set in `set_names`. Images are what
    `zoo.photos.read_rows` gives: numpy.asarray makes arrays of them, and PNG files are decoded when rows are taken.

    task: "stereo" or "flow". mix: data sets and how often each pair of them is drawn, such as
    "sceneflow:train_all + 30 * eth3d:train", in `path` under their README's names; or "list", the list at `path`, a
    file of lines "left right disparity" ("img1 img2 flow") or CSV, paths relative to it. epoch: so many draws make an
    epoch, by default as many as there are. whole_truth: leave truth that is larger than the images (Spring) as it is.

    Raises DataError (a ValueError).
    """

    def __init__(
        self,
        task: str,
        path: str | Path,
        mix: str = "list",
        epoch: Annotated[int, Within(1, _MOST_DRAWS)] | None = None,
        whole_truth: bool = False,
    ) -> None:
        self.task, self.whole_truth = task, whole_truth
        parts = parse_mix(mix)
        self.set_names = tuple(name if not split else f"{name}:{split}" for _, name, split in parts)
        self.steps = [SETS[task][name].step if name in SETS[task] else 1 for _, name, _ in parts]
        lists = [read_list(path) if name == "list" else list_pairs(name, task, split, path) for _, name, split in parts]
        # text in arrays: hundreds of thousands of Paths would fill each process's memory
        self.rows = [np.array(["\t".join(str(x or "") for x in entry).encode() for entry in of]) for of in lists]
        self.ends = np.cumsum([times * len(rows) for (times, _, _), rows in zip(parts, self.rows)])
        if self.ends[-1] > _MOST_DRAWS:
            raise DataError(f"The mixture '{mix}' comes to {self.ends[-1]:,} draws; draw pairs less often.")
        self.length = epoch or int(self.ends[-1])

    def __len__(self) -> int:
        return self.length

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Which pairs an epoch draws, in which order: no pair twice before all have been drawn once."""
        total = int(self.ends[-1])
        rounds = [generator.permutation(total) for _ in range(-(-self.length // total))]
        return np.concatenate(rounds)[: self.length]

    def entry(self, index: int) -> tuple[int, Entry]:
        """The place of a pair's data set, and its files."""
        place = int(np.searchsorted(self.ends, index, side="right"))
        rows = self.rows[place]
        image1, image2, truth, kind, invalid = rows[(index - int(self.ends[place])) % len(rows)].decode().split("\t")
        return place, Entry(Path(image1), Path(image2), Path(truth) if truth else None, kind, _path(invalid))

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, entry = self.entry(index)
        image1, image2 = read_rows(entry.image1), read_rows(entry.image2)
        if image1.shape != image2.shape:
            raise DataError(
                f"{entry.image1} and {entry.image2} differ in size ({_size(image1)} and {_size(image2)}); a pair's "
                "images must be alike."
            )
        if entry.truth is None:
            raise DataError(f"{entry.image1} has no truth: {self.set_names[place]} is for predictions only.")
        truth = read_truth(entry.truth, self.task, entry.kind)
        step = self.steps[place]
        if truth.shape[:2] != (step * image1.shape[0], step * image1.shape[1]):
            raise DataError(
                f"{entry.truth} is {_size(truth)} pixels large and its image {entry.image1} {_size(image1)}; "
                f"{'it should be twice as large' if step == 2 else 'they must be alike'}."
            )
        if entry.invalid is not None:
            truth[read_image(entry.invalid).any(-1)] = np.inf
        if step > 1 and not self.whole_truth:
            truth = np.ascontiguousarray(truth[::step, ::step])
        return {"image1": image1, "image2": image2, TRUTHS[self.task]: truth, "set": place}


def parse_mix(mix: str) -> list[tuple[int, str, str]]:
    """ "A:x + 50 * B:y" -> how often, name and split of each part. Raises DataError (a ValueError)."""
    parts = []
    for part in mix.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,6})\s*\*\s*)?(\w+)(?::(\w+))?\s*", part)
        if not match or match[1] == "0":
            raise DataError(f"The mixture '{mix}' can't be read; write it as 'sceneflow:train_all + 30 * eth3d:train'.")
        parts.append((int(match[1] or 1), match[2], match[3] or ""))
    return parts


def read_list(path: str | Path, columns: Sequence[int] = (3,)) -> list[Entry]:
    """The pairs of a list file: lines "image1 image2 truth" or CSV, with or without a line of titles, `columns` of
    them; relative paths start at the list's folder. Raises DataError (a ValueError)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no list of pairs {path}; write one pair a line, 'image1 image2 truth'.")
    lines = read_lines(path)
    rows = [(number, split_fields(line, columns)) for number, line in lines if not line.startswith("#")]
    if rows and not any("." in field for field in rows[0][1]):
        del rows[0]  # titles: names without an ending
    for number, fields in rows:
        if len(fields) not in columns:
            raise DataError(
                f"Line {number} of {path} has {len(fields)} entries; write {' or '.join(map(str, columns))}: the two "
                "images" + (" and the file of their truth." if 3 in columns else ".")
            )
    if not rows:
        raise DataError(f"The list of pairs {path} is empty; write one pair a line, 'image1 image2 truth'.")
    full = [[path.parent / field for field in fields] for _, fields in rows]
    return [Entry(first, second, truth[0] if truth else None) for first, second, *truth in full]


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _size(array: np.ndarray | PngRows) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
