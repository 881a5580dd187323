"""Features of photos, written as they are made: stopped at any moment, the same call goes on."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zoo.errors import FeaturesError, ImageError, printable
from zoo.features.decoding import decoded, normalize
from zoo.features.listing import find_photos, is_unicode, name_of
from zoo.features.store import UNREADABLE, Store, Unreadable, check_place, unreadable_beside
from zoo.pictures import input_config

MOST_IN_A_FILE = 20_000
"""Photos in a single file: the header of one with more would take long to read, and be refused by some readers."""

_ENDINGS = frozenset((".bin", ".csv", ".h5", ".json", ".npy", ".npz", ".parquet", ".pkl", ".pt", ".pth", ".zip"))
_logger = logging.getLogger("zoo")


@dataclass(frozen=True)
class Extracted:
    """What was written: where, how many photos, the shape of each one's features, and where unreadable ones are listed
    (None: there are none)."""

    output: Path
    photos: int
    shape: tuple[int, ...]
    shards: int
    unreadable: int
    unreadable_list: Path | None


@dataclass(frozen=True)
class Options:
    """How features are made.

    maps: (C, h, w), not pooled (C,). size: height and width that photos are resized and cropped to, which the
    model is set to; None: the model's.
    batch_size: photos at a time. workers: processes that decode. draft: decode JPEG files at a half, a quarter or an
    eighth where their sides can be divided so and stay half as large again as what they are resized to. strict: the
    first photo that can't be read is an error.
    """

    maps: bool = False
    size: tuple[int, int] | None = None
    batch_size: int = 16
    workers: int = 2
    draft: bool = True
    strict: bool = False


class Job:
    """Photos and a place for their features, both checked before a model is made.

    images: photos, and folders of them. output: NAME.safetensors for one file, or a folder for shards of `shard_size`
    photos. Raises ImageError, FeaturesError, StorageError.
    """

    def __init__(self, images: Iterable[str | Path], output: str | Path, shard_size: int = 256) -> None:
        self.output, self.shard_size = Path(output), shard_size
        self.one_file = self.output.suffix == ".safetensors"
        if self.output.suffix.lower() in _ENDINGS:
            raise FeaturesError(
                f"{printable(str(output))} is no place for features; name a .safetensors file, or a folder without an "
                "ending."
            )
        if not is_unicode(str(output)):
            raise FeaturesError(f"The name {printable(str(output))} is not UTF-8; choose another --output.")
        check_place(self.output, self.folder)
        listing = find_photos(images)
        self.photos = listing.photos
        if left_out := listing.left_out():
            _logger.info("Left out: %s.", left_out)
        if self.one_file and len(self.photos) > MOST_IN_A_FILE:
            raise FeaturesError(
                f"{len(self.photos):,} photos are more than the {MOST_IN_A_FILE:,} of one file; give a folder as "
                "--output, without .safetensors."
            )

    @property
    def folder(self) -> Path:
        """Where shards are: the output, or of a single file a folder beside it until it is complete."""
        return self.output.with_name(f"{self.output.name}.parts") if self.one_file else self.output


def extract_features(
    model: Any, name: str, images: Iterable[str | Path], output: str | Path, shard_size: int = 256, **options: Any
) -> Extracted:
    """Write features of photos, float32, in the order of the input; what a stopped call has written is kept.

    model: of the zoo or timm's, in eval mode; of a two-image model its encoder is taken. It runs where the model is.
    name: of the model, for the record. images: photos, and folders of them. output: NAME.safetensors for one file, or a
    folder for shards of `shard_size` photos. options: see `Options`.

    Photos that can't be read are listed in a file and counted. Shards are kept if their photos have not changed since.
    At most a shard is in memory. Raises ImageError, FeaturesError, StorageError.
    """
    return run(Job(images, output, shard_size), model, name, Options(**options))


def run(job: Job, model: Any, name: str, options: Options) -> Extracted:
    """`extract_features` of a job that has been checked."""
    size, maps = options.size, options.maps
    encoder = getattr(model, "encoder", model)
    config = input_config(model, size or _size_of(encoder))
    if size is not None and hasattr(encoder, "set_input_size"):  # convolutional networks take any size
        encoder.set_input_size(size)
    settings = {
        "model": name,
        "weights": _digest(model),
        "maps": maps,
        "input_size": config["input_size"],
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "draft": options.draft,
    }
    store = Store(job.folder, job.photos, job.shard_size, settings)
    device = next(model.parameters()).device
    with store.held():
        with torch.inference_mode():
            shape = tuple(_forward(encoder, torch.zeros(1, *config["input_size"], device=device), maps).shape[1:])
        todo = store.begin(shape, options.strict)
        _check_space(job, store, shape)
        try:
            _make_shards(store, todo, encoder, config, options)
        except torch.OutOfMemoryError as error:
            raise FeaturesError(
                f"The device's memory is too small for {options.batch_size} photos at a time; start the same command "
                "with a smaller --batch-size, and it goes on."
            ) from error
        except KeyboardInterrupt:
            done = store.readable + store.unreadable
            _logger.warning("Stopped; %d of %d photos are done, and the same command goes on.", done, len(job.photos))
            raise
        finally:
            if not store.has_shards():
                store.remove()
        if not store.readable:
            reason = store.first_reason()
            store.remove()
            raise ImageError(f"None of {len(job.photos):,} photos can be read; the first: {reason}")
        store.finish()
        beside = job.output / UNREADABLE
        if job.one_file:
            store.merge(job.output, {"format": "pt", "variant": name})
            beside = unreadable_beside(job.output)
    if job.one_file:
        store.remove()
    listed = beside if store.unreadable else None
    return Extracted(job.output, store.readable, shape, store.count, store.unreadable, listed)


def _make_shards(store: Store, todo: list[int], encoder: nn.Module, config: dict[str, Any], options: Options) -> None:
    digests: dict[int, str] = {}

    def batches() -> Iterator[list[str]]:
        for number in todo:
            photos = store.photos_of(number)
            digests[number] = store.digest_of(number)  # before they are read
            for start in range(0, len(photos), options.batch_size):
                yield photos[start : start + options.batch_size]

    done = store.readable + store.unreadable
    if done and todo:
        _logger.info("%d of %d photos are done; going on.", done, len(store.photos))
    few = sum(len(store.photos_of(number)) for number in todo) <= options.batch_size
    device = next(encoder.parameters()).device
    with (
        decoded(batches(), config, options.draft, 0 if few else options.workers) as pixels,
        tqdm(total=len(store.photos), initial=done, desc=store.settings["model"], unit="photo", disable=None) as bar,
        torch.inference_mode(),
    ):
        for number in todo:
            left = len(store.photos_of(number))
            rows = torch.empty(left, *store.shape)
            names: list[str] = []
            unreadable: Unreadable = []
            while left:
                batch = next(pixels)
                if batch.unreadable and options.strict:
                    raise ImageError(batch.unreadable[0][1])
                if batch.pixels is not None:
                    values = _forward(encoder, normalize(batch.pixels, config, device), options.maps)
                    rows[len(names) : len(names) + len(values)] = values.cpu()
                names += map(name_of, batch.paths)
                unreadable += [(name_of(path), reason) for path, reason in batch.unreadable]
                left -= len(batch.paths) + len(batch.unreadable)
                bar.update(len(batch.paths) + len(batch.unreadable))
            store.save(number, digests.pop(number), names, rows[: len(names)], unreadable)


def _size_of(encoder: Any) -> tuple[int, int] | None:
    """What a model was made for, which may be another size than that of its weights; None: any."""
    return getattr(encoder, "img_size", None) or getattr(getattr(encoder, "patch_embed", None), "img_size", None)


def _forward(encoder: Any, images: Tensor, maps: bool) -> Tensor:
    if maps:
        level = getattr(encoder, "final_level", -1)
        (values,) = encoder.forward_intermediates(images, [level], norm=True, intermediates_only=True)
        return values
    return encoder.forward_head(encoder.forward_features(images), pre_logits=True)


def _digest(model: nn.Module) -> str:
    """Of a model's weights: a run that goes on may be given others under the same name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_space(job: Job, store: Store, shape: tuple[int, ...]) -> None:
    """Warn of a disk that will be full before the end; some file systems don't tell, so it is no error."""
    left = len(job.photos) - store.readable - store.unreadable
    needed = 4 * torch.Size(shape).numel() * (left + (len(job.photos) if job.one_file else 0))
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        _logger.warning(
            "The features will take %.1f GB, and %s has %.1f GB free.",
            needed / 1e9,
            printable(str(job.folder)),
            free / 1e9,
        )
