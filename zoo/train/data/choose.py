"""Which source reads what lies at a path, so that `--data` is all that has to be said."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError
from zoo.train.extensions import is_extension
from zoo.train.recipe import Recipe

log = logging.getLogger("zoo")

_MADE = ("scenes", "patterns")
"""Sources that make their samples and read none."""


_WANTED = {  # by what a sample is: their plural, and what they are read from
    "image": ("images", "a folder of images, a data set of the Hugging Face Hub or a folder of one, or .tar shards"),
    "pair": ("pairs", "a folder with pairs.txt or listing.txt, or such a list"),
    "stereo": ("stereo pairs", "the folder of the data sets, or a list of lines 'left right disparity'"),
    "flow": ("pairs with flow", "the folder of the data sets, or a list of lines 'img1 img2 flow'"),
    "points": ("pairs with depth and cameras", "a folder with pairs.txt, as docs/pointmaps.md has it"),
}


def settings_for(path: str, recipe: Recipe, sample: str, held_out: bool = False) -> dict[str, Any]:
    """Overrides with which a recipe reads `path`: by its own source, or by another one, if that is what lies there.

    sample: what its objective takes. held_out: whether what it is validated on is named besides. Raises RecipeError (a
    ValueError).
    """
    data = recipe.data
    source = str(data.get("source"))
    found = source_at(path, sample)
    if source in _MADE and found is None:
        samples, wanted = _WANTED.get(sample, (f"samples of {sample}", "a folder"))
        raise RecipeError(
            f"{path} is nothing that {samples} can be read from; give {wanted}, or name what reads it with "
            "--set data.source=..."
        )
    if found == source == "matching" and Path(path).is_file():
        return {"data.path": path, "data.mix": "list"} | _validation_beside_a_list(path, recipe, held_out)
    if found in (None, source) or is_extension(source):
        return {"data.path": path}  # the recipe's own source says what is missing
    overrides: dict[str, Any] = {"data.source": found, "data.path": path}
    if found == "images" and (Path(path) / "val").is_dir():
        overrides["validation"] = {"split": "val"}
    if found == "posed" and "image_size" in data:
        overrides["data.image_size"] = data["image_size"]  # it reads at the size that is trained at
    return overrides


def _validation_beside_a_list(path: str, recipe: Recipe, held_out: bool) -> dict[str, Any]:
    """The recipe's own is of data sets that a list of pairs is no part of."""
    if held_out:
        return {"validation": {"mix": "list", "epoch": None}}
    if recipe.validation:
        log.warning(
            "%s holds nothing out: the run is not validated; name another list with --set validation.path=...", path
        )
    return {"validation": {}} | ({"export": "last"} if recipe.export == "best" else {})


def source_at(path: str, sample: str) -> str | None:
    """The name of the source of `sample`s that reads what is at a path; None if nothing does."""
    if sample == "pair":
        return "pairs" if _has_pairs(Path(path.split(",")[0].strip())) else None
    if sample in ("stereo", "flow"):
        return "matching" if Path(path).exists() else None
    if sample == "points":
        return "posed" if (Path(path) / "pairs.txt").is_file() else None
    return _images_at(path) if sample == "image" else None


def _has_pairs(place: Path) -> bool:
    lists = ("pairs.txt", "listing.txt", "*/pairs.txt", "*/listing.txt")
    return place.is_file() or any(True for pattern in lists for _ in place.glob(pattern))


def _images_at(path: str) -> str | None:
    if ".tar" in path and not os.path.isdir(path):
        return "webdataset"
    if not os.path.isdir(path):
        owner, _, name = path.partition("/")
        return "datasets" if owner and name and "/" not in name and not os.path.exists(path) else None
    names = os.listdir(path)
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    saved = ("dataset_dict.json", "state.json", ".parquet")
    return "datasets" if any(name.endswith(saved) for name in names) else "images"
