"""Which samples a recipe's `data` means: its source by name."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from torch.utils.data import Dataset

from zoo.errors import RecipeError
from zoo.scenes import SceneConfig, SceneImages, ScenePairs
from zoo.scenes.torch.pairs import DrawnScenes, NumberedScenes
from zoo.settings import Count, Declared, OneOf, PathLike, Side, check_settings, declared
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


Place = Literal["workers", "device"]
"""What draws or renders scenes."""

_Make = Callable[..., Any]
"""Settings and a seed -> a source; `path` is None where the recipe has none."""


class _Source(NamedTuple):
    """How a source is made, and what declares its settings; `skip` are parameters that are none."""

    make: _Make
    takers: tuple[Callable[..., Any], ...]
    skip: tuple[str, ...] = ("self", "seed")


def make_source(settings: dict[str, Any], seed: int, sample: str) -> Any:
    """The map-style dataset that a recipe's `data` names. Raises RecipeError or DataError (ValueErrors).

    sample: what each of its entries is to be, "pair" (image1, image2), one of `TASKS` (a pair and its truth) or
    "image" (image, and label where there are classes: then the source has `num_classes`, and `classes` if they have
    names), uint8 arrays (H, W, 3).
    """
    settings = dict(settings)
    kind = settings.pop("source", None)
    if is_extension(kind):
        return _make_own(str(kind), settings, seed)
    if not isinstance(kind, str) or (kind, sample) not in SOURCES:
        known = [name for name, of in SOURCES if of == sample]
        raise RecipeError(
            f"There is no data source {reprlib.repr(kind)} of {_name(sample)}; choose {' or '.join(known)}, or your "
            "own as package.module:Class."
        )
    if settings.get("path") is None:  # said by --data
        settings.pop("path", None)
    settings = check_settings(settings, source_settings(kind, sample), "The recipe", "data.")
    with fitting(f"settings of the data source '{kind}'"):
        return SOURCES[kind, sample].make(seed, **settings)


def _name(sample: str) -> str:
    return f"pairs for {sample}" if sample in TASKS else f"{sample}s"


def source_settings(kind: str, sample: str) -> dict[str, Declared]:
    """The settings of one of the zoo's sources."""
    _, takers, skip = SOURCES[kind, sample]
    return declared(*takers, skip=skip)


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


def _scenes(sample: str) -> _Source:
    def make(
        seed: int,
        path: PathLike | None = None,
        samples: Count = ENDLESS,
        task: Annotated[str, OneOf(("pair", "image", *TASKS))] | None = None,
        draw: Place = "workers",
        render: Place = "workers",
        **scene: Any,
    ) -> Any:
        """render: "workers" (the default) or "device", which gets the scenes drawn but not rendered; see `to_device`.
        draw: "workers", or "device" too. task: the sample, to be read in a recipe. samples: how many different ones
        there are; by default they never end."""
        _refuse_path(path, "Scenes")
        if task not in (None, sample):
            raise RecipeError(f"The objective takes scenes as {sample}, not as {task}; leave out data.task.")
        if (draw, render) == ("device", "workers"):
            raise RecipeError(
                "Scenes that are drawn by the device can't be rendered by workers; set data.render=device, or leave "
                "out data.draw."
            )
        if sample == "stereo":
            scene.setdefault("rectified", True)
        pairs = ScenePairs(SceneConfig(**scene), seed=seed, length=samples, truths=TASKS.get(sample, ()))
        if render == "device":
            return (NumberedScenes if draw == "device" else DrawnScenes)(pairs, views=1 if sample == "image" else 2)
        return SceneImages(pairs) if sample == "image" else pairs

    return _Source(make, (make, SceneConfig))


def _refuse_path(path: Any, what: str) -> None:
    """Raise RecipeError if what makes its samples is told to read some."""
    if path is not None:
        raise RecipeError(
            f"{what} are made, not read, so data.path has no use; name the source that reads it as data.source, or "
            "leave it out."
        )


def _pattern_images(
    seed: int, path: PathLike | None = None, samples: Count = ENDLESS, image_size: Side = 64
) -> PatternImages:
    _refuse_path(path, "Patterns")
    return PatternImages(seed, samples, image_size)


def _files(source_cls: Any, what: str) -> _Source:
    """A source that reads `what` at the path of the data settings."""

    def make(seed: int, path: Any = None, **settings: Any) -> Any:
        if path is None:
            raise RecipeError(f"This recipe trains on {what} with --data.")
        return source_cls(path, **settings)

    return _Source(make, (source_cls,))


def _matching_pairs(task: str) -> _Source:
    def make(seed: int, path: Any = None, **settings: Any) -> MatchingPairs:
        if path is None:
            raise RecipeError(
                f"This recipe trains on {task} pairs; name the folder of the data sets, or your list, with --data."
            )
        if Path(path).is_file():  # a list of one's own, whatever data sets the recipe mixes
            settings["mix"] = "list"
        return MatchingPairs(task, path, **settings)

    return _Source(make, (MatchingPairs,), ("self", "task"))


SOURCES: dict[tuple[str, str], _Source] = {
    **{("scenes", sample): _scenes(sample) for sample in ("pair", "image", *TASKS)},
    ("posed", "points"): _files(PosedPairs, "your images; name the folder of posed pairs"),
    ("pairs", "pair"): _files(ImagePairs, "photo pairs; say where they are"),
    ("patterns", "image"): _Source(_pattern_images, (_pattern_images,)),
    ("images", "image"): _files(ImageFolder, "your images; name the folder of images"),
    ("datasets", "image"): _files(HubImages, "your images; name the data set's name or folder"),
    ("webdataset", "image"): _files(ImageShards, "your images; name the shards, such as 'train-{0000..1023}.tar',"),
    **{("matching", task): _matching_pairs(task) for task in TRUTHS},
}
"""The zoo's sources, by the name that recipes use and by what their samples are."""
