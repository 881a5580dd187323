"""Photos decoded and prepared in processes of their own, in the order that is asked for.

Workers send bytes through pipes, a quarter of the floats' size: shared memory is scarce in containers.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import FeaturesError, ImageError
from zoo.photos import read_image

_SPARE = 1.5
"""By how much a photo that is decoded small is larger than what it is resized to, at least: resizing smooths it."""


class Batch(NamedTuple):
    """Photos as uint8 (n, 3, H, W) with their paths, and the others with the reason why they can't be read."""

    pixels: np.ndarray | None
    paths: list[str]
    unreadable: list[tuple[str, str]]


class _Prepared(Dataset):
    """Path -> pixels as timm's evaluation resizes and crops them, uint8 (3, H, W), or why there are none."""

    def __init__(self, config: dict[str, Any], draft: bool) -> None:
        self.transform: Any = create_transform(**config, use_prefetcher=True)  # which leaves them uint8
        resized = max(config["input_size"][1:]) / config["crop_pct"]
        self.enough = math.ceil(_SPARE * resized) if draft else None

    def __getitem__(self, path: str) -> tuple[str, np.ndarray | str]:
        try:
            image = Image.fromarray(read_image(path, enough=self.enough))
        except ImageError as error:
            return path, str(error)
        return path, self.transform(image).numpy()


def _collate(samples: list[tuple[str, np.ndarray | str]]) -> Batch:
    readable = [(path, pixels) for path, pixels in samples if not isinstance(pixels, str)]
    return Batch(
        np.stack([pixels for _, pixels in readable]) if readable else None,
        [path for path, _ in readable],
        [(path, reason) for path, reason in samples if isinstance(reason, str)],
    )


def _begin_worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals send them to all processes of a command
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """torch's own watch doesn't see a killed main process while a batch waits in a full pipe."""
    if (main := multiprocessing.parent_process()) is not None:
        main.join()
        os._exit(1)


@contextlib.contextmanager
def decoded(
    batches: Iterable[list[str]], config: dict[str, Any], draft: bool, workers: int
) -> Iterator[Iterator[Batch]]:
    """Each batch of paths as pixels; workers end with the block.

    config: timm's, of `zoo.pictures.input_config`. draft: see `read_image`, `enough`. Raises FeaturesError (a
    RuntimeError) when a worker is killed, wherever in the block that is noticed.
    """
    loader = DataLoader(
        _Prepared(config, draft),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_begin_worker,
    )
    iterator: Any = iter(loader)
    try:
        yield iterator
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise FeaturesError(
            "A process that decodes photos was killed, as systems do when memory runs out; start the same command "
            "again with fewer --workers, and it goes on from the last shard."
        ) from error
    finally:
        if workers:
            iterator._shutdown_workers()  # else only when nothing refers to it, no traceback either


def normalize(pixels: np.ndarray, config: dict[str, Any], device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> the model's input on the device, by the steps of torchvision's ToTensor and Normalize."""
    mean, std = (torch.tensor(config[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    return torch.from_numpy(pixels).to(device).float().div_(255).sub_(mean).div_(std)
