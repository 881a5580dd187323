"""Which samples a step sees: a pure function of (seed, step, rank), so that a run can stop and go on anywhere."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import RecipeError, TrainingError, ZooError
from zoo.scenes.torch.pairs import DrawnScenes, NumberedScenes
from zoo.scenes.torch.random import mixed
from zoo.train.curriculum import Curriculum

ENDLESS = 2**62
"""Length of procedural sources: their every sample is new."""


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


def _leave_signals_to_the_main_process(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals and schedulers send them to all processes of a run,
        signal.signal(number, signal.SIG_IGN)  # which is to save before it stops


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
    """Batches of (place, draw) for one process: every sample of a source once over all processes, in order, drawn alike
    whenever it is asked for."""

    seed = 0

    def __init__(self, length: int, batch_size: int, rank: int, world: int) -> None:
        self.batches = [
            [(place, place) for place in range(first, min(first + batch_size, length))]
            for first in range(rank * batch_size, length, world * batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


class _NumberedBatches:
    """Batches of scenes that are drawn on the device: numbers and ranges, and by "draw" what a transform's `on_device`
    draws with, int64 (B,), of each sample its own."""

    def __init__(
        self, source: NumberedScenes, sampler: StepSampler | EachOnce, curriculum: Curriculum | None, pin_memory: bool
    ) -> None:
        self.source, self.sampler, self.curriculum, self.pin_memory = source, sampler, curriculum, pin_memory

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for keys in self.sampler:
            index, draw = np.array(keys, dtype=np.int64).T
            source: Any = self.source
            # all draws of a batch are of one step, and a curriculum's values are a step's
            if self.curriculum is not None and (changes := self.curriculum.data(keys[0][1])):
                source = source.changed(**changes)
            batch = {key: torch.from_numpy(value) for key, value in source.numbers(index).items()}
            batch["draw"] = mixed(self.sampler.seed, torch.from_numpy(draw))
            yield {key: value.pin_memory() for key, value in batch.items()} if self.pin_memory else batch


def make_loader(
    source: Any,
    transform: Callable[[dict[str, Any], int], dict[str, Any]],
    sampler: StepSampler | EachOnce,
    workers: int,
    pin_memory: bool,
    curriculum: Curriculum | None = None,
) -> Iterable[dict[str, Tensor]]:
    """`sampler`'s batches; they do not depend on the number of workers.

    Scenes that are drawn on the device need none, if the transform draws there, too (its `on_device`).
    """
    if isinstance(source, NumberedScenes) and hasattr(transform, "on_device"):
        return _NumberedBatches(source, sampler, curriculum, pin_memory)
    return DataLoader(
        _Prepared(source, transform, sampler.seed, curriculum),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def to_device(batch: dict[str, Tensor], source: Any, device: torch.device) -> dict[str, Tensor]:
    """A batch of the loader on the device, where scenes that are only drawn become images."""
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return source.render_batch(batch) if isinstance(source, DrawnScenes) else batch


class Batches:
    """A loader's batches. Leaving the block ends its workers, which no signal does.

    >>> with Batches(loader) as batches:
    ...     batch = next(batches)
    """

    def __init__(self, loader: Iterable[dict[str, Tensor]]) -> None:
        self._batches: Any = iter(loader)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if hasattr(self._batches, "_shutdown_workers"):  # else only when nothing refers to it, no traceback either
            self._batches._shutdown_workers()
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # at any place in the block
            raise TrainingError(
                "A process that prepares data was killed, as systems do when memory runs out; start the same command "
                "again with fewer --workers, and it goes on from the last checkpoint."
            ) from error

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, Tensor]:
        """The next batch; what a data worker raises comes as its sentence, without the worker's traceback."""
        try:
            return next(self._batches)
        except ZooError as error:
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None
