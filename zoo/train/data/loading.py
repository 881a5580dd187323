"""Which samples a step sees: a pure function of (seed, step, rank), so that a run can stop and go on anywhere."""

from __future__ import annotations

import inspect
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import RecipeError
from zoo.scenes.render import SceneConfig, SceneImages, ScenePairs
from zoo.scenes.render_torch import DrawnScenes
from zoo.train.curriculum import Curriculum
from zoo.train.data.images import HubImages, ImageFolder, ImageShards
from zoo.train.data.pairs import ImagePairs
from zoo.train.data.patterns import PatternImages

ENDLESS = 2**62
"""Length of procedural sources: their every sample is new."""


def make_source(settings: dict[str, Any], seed: int, sample: str) -> Any:
    """The map-style dataset that a recipe's `data` names. Raises RecipeError or DataError (ValueErrors).

    sample: what each of its entries is to be, "pair" (image1, image2) or "image" (image, and label where there are
    classes: then the source has `num_classes`, and `classes` if they have names), uint8 arrays (H, W, 3).
    """
    settings = dict(settings)
    kind = settings.pop("source", None)
    sources: dict[tuple[Any, str], Callable[[dict[str, Any], int], Any]] = {
        ("scenes", "pair"): _training_pairs,
        ("scenes", "image"): _scene_images,
        ("pairs", "pair"): _photo_pairs,
        ("patterns", "image"): _pattern_images,
        ("images", "image"): _files(ImageFolder, "the folder of images"),
        ("datasets", "image"): _files(HubImages, "the data set's name or folder"),
        ("webdataset", "image"): _files(ImageShards, "the shards, such as 'train-{0000..1023}.tar'"),
    }
    if (kind, sample) not in sources:
        known = [name for name, of in sources if of == sample]
        raise RecipeError(f"There is no data source '{kind}' of {sample}s; choose {' or '.join(known)}.")
    return sources[kind, sample](settings, seed)


def _training_pairs(settings: dict[str, Any], seed: int) -> ScenePairs | DrawnScenes:
    """render: "workers" (the default) or "device", which gets the scenes drawn but not rendered; see `to_device`."""
    render = settings.pop("render", "workers")
    if render not in ("workers", "device"):
        raise RecipeError(f"Scenes can't be rendered by '{render}'; choose workers or device.")
    pairs = _scene_pairs(settings, seed)
    return DrawnScenes(pairs) if render == "device" else pairs


def _scene_pairs(settings: dict[str, Any], seed: int) -> ScenePairs:
    """samples: how many different ones there are; by default they never end."""
    settings.pop("path", None)
    length = settings.pop("samples", ENDLESS)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        config = SceneConfig(**settings)
    except TypeError as error:
        raise RecipeError(f"The recipe's data settings don't fit procedural scenes ({error}).") from error
    return ScenePairs(config, seed=seed, length=length)


def _scene_images(settings: dict[str, Any], seed: int) -> Any:
    return SceneImages(_scene_pairs(settings, seed))


def _pattern_images(settings: dict[str, Any], seed: int) -> PatternImages:
    settings.pop("path", None)
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


def _photo_pairs(settings: dict[str, Any], seed: int) -> ImagePairs:
    path = settings.pop("path", None)
    if settings:
        raise RecipeError(f"Photo pairs have no settings {', '.join(settings)}; leave them out of the recipe's data.")
    if path is None:
        raise RecipeError("This recipe trains on photo pairs; say where they are with --data FOLDER.")
    return ImagePairs(path)


def seed_python(seed: int) -> None:
    """Seed the generators of Python and NumPy, which timm's augmentations draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


class _Prepared(Dataset):
    """Samples by (place in the source, draw number): the transform's randomness comes from the draw number."""

    def __init__(
        self,
        source: Any,
        transform: Callable[[dict[str, Any], int], dict[str, Any]],
        seed: int,
        curriculum: Curriculum | None,
    ) -> None:
        self.source, self.transform, self.seed, self.curriculum = source, transform, seed, curriculum

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, draw = key
        seed = int(np.random.SeedSequence([self.seed, draw]).generate_state(1, np.uint64)[0] >> 1)
        source = self.source
        if self.curriculum is not None and (changes := self.curriculum.data(draw)):
            source = source.changed(**changes)
        sample = {"index": index, **source[index]}
        with torch.random.fork_rng(devices=[]):
            # for the transforms of torchvision and timm, which take no generator
            torch.default_generator.manual_seed(seed)
            seed_python(seed)
            return self.transform(sample, seed)


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the run is to save before it stops


class StepSampler:
    """Batches of (place, draw number) for one process, from step `start` on.

    Draw k of a finite source is entry k mod length of the k div length-th epoch's permutation, which `order` draws
    (by default a uniform one); an endless source is read in order. A step's draws are dealt out over its
    micro-batches and the processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        accumulate: int,
        rank: int,
        world: int,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        if batch_size % (accumulate * world):
            raise RecipeError(
                f"A batch of {batch_size} samples can't be dealt to {world} processes in {accumulate} parts each; "
                "choose a batch_size that their product divides."
            )
        self.length, self.batch_size, self.seed, self.start, self.stop = length, batch_size, seed, start, stop
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.order = order or (lambda generator: generator.permutation(length))

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        micro = self.batch_size // (self.accumulate * self.world)
        epoch, order = -1, None
        for step in range(self.start, self.stop):
            for part in range(self.accumulate):
                first = step * self.batch_size + (part * self.world + self.rank) * micro
                batch = []
                for draw in range(first, first + micro):
                    if self.length >= ENDLESS:
                        batch.append((draw, draw))
                        continue
                    if draw // self.length != epoch or order is None:
                        epoch = draw // self.length
                        order = self.order(np.random.default_rng([self.seed, epoch]))
                    batch.append((int(order[draw % self.length]), draw))
                yield batch


class EachOnce:
    """Batches of (place, 0) for one process: every sample of a source once over all processes, in order."""

    seed = 0

    def __init__(self, length: int, batch_size: int, rank: int, world: int) -> None:
        self.batches = [
            [(place, 0) for place in range(first, min(first + batch_size, length))]
            for first in range(rank * batch_size, length, world * batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


def make_loader(
    source: Any,
    transform: Callable[[dict[str, Any], int], dict[str, Any]],
    sampler: StepSampler | EachOnce,
    workers: int,
    pin_memory: bool,
    curriculum: Curriculum | None = None,
) -> DataLoader:
    """A DataLoader over `sampler`'s batches; what it gives does not depend on the number of workers."""
    return DataLoader(
        _Prepared(source, transform, sampler.seed, curriculum),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
    )


def to_device(batch: dict[str, Tensor], source: Any, device: torch.device) -> dict[str, Tensor]:
    """A batch of the loader on the device, where scenes that are only drawn become images."""
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return source.render_batch(batch) if isinstance(source, DrawnScenes) else batch
