"""Which samples a recipe's `data` means: its source by name."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from zoo.errors import RecipeError
from zoo.models.making.arguments import MAX_SIDE
from zoo.scenes import SceneConfig, SceneImages, ScenePairs
from zoo.scenes.torch.pairs import DrawnScenes, NumberedScenes
from zoo.train.data.folder import ImageFolder
from zoo.train.data.hub import HubImages
from zoo.train.data.loading import ENDLESS
from zoo.train.data.matching.augment import TRUTHS
from zoo.train.data.matching.pairs import MatchingPairs
from zoo.train.data.pairs import ImagePairs
from zoo.train.data.patterns import PatternImages
from zoo.train.data.posed import PosedPairs
from zoo.train.data.shards import ImageShards
from zoo.train.extensions import fitting, is_extension, load_class

TASKS = {
    "stereo": ("disparity",),
    "flow": ("flow",),
    "points": ("points1", "points2", "depth1", "depth2", "intrinsics", "pose"),
}
"""Samples with a truth, and the keys it comes under: see `zoo.scenes.pairs.TRUTHS`; what is not known is inf."""


def make_source(settings: dict[str, Any], seed: int, sample: str) -> Any:
    """The map-style dataset that a recipe's `data` names. Raises RecipeError or DataError (ValueErrors).

    sample: what each of its entries is to be, "pair" (image1, image2), one of `TASKS` (a pair and its truth) or
    "image" (image, and label where there are classes: then the source has `num_classes`, and `classes` if they have
    names), uint8 arrays (H, W, 3).
    """
    settings = dict(settings)
    kind = settings.pop("source", None)
    sources: dict[tuple[Any, str], Callable[[dict[str, Any], int], Any]] = {
        ("scenes", "pair"): _scenes("pair"),
        ("scenes", "image"): _scenes("image"),
        **{("scenes", task): _scenes(task) for task in TASKS},
        ("posed", "points"): _files(PosedPairs, "the folder of posed pairs"),
        ("pairs", "pair"): _photo_pairs,
        ("patterns", "image"): _pattern_images,
        ("images", "image"): _files(ImageFolder, "the folder of images"),
        ("datasets", "image"): _files(HubImages, "the data set's name or folder"),
        ("webdataset", "image"): _files(ImageShards, "the shards, such as 'train-{0000..1023}.tar'"),
        **{("matching", task): _matching_pairs(task) for task in TRUTHS},
    }
    _check_measure(settings)
    if is_extension(kind):
        return _make_own(str(kind), settings, seed)
    if not isinstance(kind, str) or (kind, sample) not in sources:
        known = [name for name, of in sources if of == sample]
        raise RecipeError(
            f"There is no data source {reprlib.repr(kind)} of {sample}s; choose {' or '.join(known)}, or your own as "
            "package.module:Class."
        )
    with fitting(f"settings of the data source '{kind}'"):
        return sources[kind, sample](settings, seed)


def _check_measure(settings: dict[str, Any]) -> None:
    """Raise RecipeError for sizes and numbers of drawn images that no machine could hold."""
    for name, most in (("image_size", MAX_SIDE), ("supersample", 64), ("samples", ENDLESS)):
        value = settings.get(name, 1)
        pair = name == "image_size" and isinstance(value, (list, tuple)) and len(value) == 2
        for number in value if pair else [value]:
            if type(number) is not int or not 1 <= number <= most:
                raise RecipeError(f"The recipe's data has {name}: {reprlib.repr(value)}; it is 1 to {most:,}.")


def _make_own(name: str, settings: dict[str, Any], seed: int) -> Any:
    """A source of the user's own, a Dataset: called with the recipe's settings, and the seed if it takes one."""
    cls = load_class(name, "data source", Dataset)
    try:
        parameters: Any = inspect.signature(cls).parameters
    except ValueError:  # a builtin's
        parameters = ()
    try:
        source = cls(**settings, **(dict(seed=seed) if "seed" in parameters and "seed" not in settings else {}))
    except TypeError as error:
        raise RecipeError(f"The recipe's data settings don't fit {name} ({error}); correct them.") from error
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise RecipeError(f"{name} is no map-style dataset; give it __len__ and __getitem__.")
    return source


def _scenes(sample: str) -> Callable[[dict[str, Any], int], Any]:
    """render: "workers" (the default) or "device", which gets the scenes drawn but not rendered; see `to_device`.
    draw: "workers", or "device" too. task: the sample, to be read in a recipe. samples: how many different ones there
    are; by default they never end."""

    def make(settings: dict[str, Any], seed: int) -> Any:
        _refuse_path(settings, "Scenes")
        task = settings.pop("task", sample)
        if task != sample:
            raise RecipeError(f"The objective takes scenes as {sample}, not as {task}; leave out data.task.")
        draw, render = settings.pop("draw", "workers"), settings.pop("render", "workers")
        if (draw, render) not in (("workers", "workers"), ("workers", "device"), ("device", "device")):
            raise RecipeError(
                f"Scenes can't be drawn by '{draw}' and rendered by '{render}'; choose workers or device, and the "
                "device for rendering what it draws."
            )
        length = settings.pop("samples", ENDLESS)
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        if sample == "stereo":
            settings.setdefault("rectified", True)
        try:
            config = SceneConfig(**settings)
        except TypeError as error:
            raise RecipeError(f"The recipe's data settings don't fit procedural scenes ({error}).") from error
        pairs = ScenePairs(config, seed=seed, length=length, truths=TASKS.get(sample, ()))
        if render == "device":
            return (NumberedScenes if draw == "device" else DrawnScenes)(pairs, views=1 if sample == "image" else 2)
        return SceneImages(pairs) if sample == "image" else pairs

    return make


def _refuse_path(settings: dict[str, Any], what: str) -> None:
    """Raise RecipeError if what makes its samples is told to read some."""
    if settings.pop("path", None) is not None:
        raise RecipeError(
            f"{what} are made, not read, so data.path has no use; name the source that reads it as data.source, or "
            "leave it out."
        )


def _pattern_images(settings: dict[str, Any], seed: int) -> PatternImages:
    _refuse_path(settings, "Patterns")
    length, size = settings.pop("samples", ENDLESS), settings.pop("image_size", 64)
    if settings:
        raise RecipeError(f"Patterns have no settings {', '.join(settings)}; known are samples, image_size.")
    return PatternImages(seed, length, size)


def _files(source_cls: Any, what: str) -> Callable[[dict[str, Any], int], Any]:
    """How a source is made that reads `what` at the path of the data settings."""

    def make(settings: dict[str, Any], seed: int) -> Any:
        known = inspect.signature(source_cls).parameters
        if unknown := [key for key in settings if key not in known]:
            raise RecipeError(
                f"The recipe's data has unknown settings {', '.join(unknown)}; known are {', '.join(known)}."
            )
        if settings.get("path") is None:
            raise RecipeError(f"This recipe trains on your images; name {what} with --data.")
        return source_cls(**settings)

    return make


def _matching_pairs(task: str) -> Callable[[dict[str, Any], int], MatchingPairs]:
    def make(settings: dict[str, Any], seed: int) -> MatchingPairs:
        known = inspect.signature(MatchingPairs).parameters.keys() - {"task"}
        if unknown := sorted(settings.keys() - known):
            raise RecipeError(
                f"The recipe's data has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}."
            )
        if settings.get("path") is None:
            raise RecipeError(
                f"This recipe trains on {task} pairs; name the folder of the data sets, or your list, with --data."
            )
        if Path(settings["path"]).is_file():  # a list of one's own, whatever data sets the recipe mixes
            settings["mix"] = "list"
        return MatchingPairs(task, **settings)

    return make


def _photo_pairs(settings: dict[str, Any], seed: int) -> ImagePairs:
    path = settings.pop("path", None)
    if settings:
        raise RecipeError(f"Photo pairs have no settings {', '.join(settings)}; leave them out of the recipe's data.")
    if path is None:
        raise RecipeError("This recipe trains on photo pairs; say where they are with --data FOLDER.")
    return ImagePairs(path)
