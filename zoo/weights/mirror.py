"""A folder with the weights of many variants, for machines without a network: ZOO_WEIGHTS names it there.

Each file has its record beside it, and `index.json` lists them all. Whatever is there and passes its check stays,
so that a mirror can be stopped at any moment and continued.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from zoo.catalog import VARIANTS, Source, Variant
from zoo.errors import CorruptWeightsError, StorageError, ZooError
from zoo.weights.disk import files, records
from zoo.weights.sources import copy, first_sentence

_logger = logging.getLogger("zoo")

INDEX = "index.json"


@dataclass(frozen=True)
class Mirrored:
    """What became of one variant. problem: why its weights could not be had; None if they are in the mirror."""

    variant: Variant
    path: Path
    problem: str | None = None


def mirror(
    folder: str | Path, variants: Iterable[Variant], fetch: Callable[[str], Path], *, workers: int = 4
) -> Iterator[Mirrored]:
    """Put the weights of variants into `folder`, verified in full, and yield each as it is done, in any order.

    fetch: gives a variant's local file by name, such as `zoo.fetch`. workers: how many checkpoints at a time; the
    variants made from one checkpoint follow each other, so that it is downloaded once. Architectures without
    published weights are left out.

    What can't be had is reported, not raised. Raises StorageError if the folder itself can't be written.
    """
    folder = Path(folder)
    variants = [variant for variant in variants if variant.tag]
    groups: dict[tuple[Source, ...], list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.sources, []).append(variant)
    waiting = list(groups.values())
    results: SimpleQueue[Mirrored | Exception] = SimpleQueue()

    def work() -> None:
        with suppress(IndexError):  # nothing is waiting any more
            while True:
                for variant in waiting.pop(0):
                    try:
                        results.put(_mirror_one(folder, variant, fetch))
                    except Exception as error:
                        results.put(error)

    _write_index(folder, variants)
    for _ in range(workers):  # daemons, so that Ctrl-C ends the process however busy they are
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in variants:
            result = _wait(results)
            if isinstance(result, Exception):
                raise result
            _write_index(folder, variants)
            yield result
    finally:
        waiting.clear()


def _wait(results: SimpleQueue[Mirrored | Exception]) -> Mirrored | Exception:
    while True:  # in turns of a second: a Ctrl-C that comes just before the wait begins does not end it
        with suppress(Empty):
            return results.get(timeout=1.0)


def _mirror_one(folder: Path, variant: Variant, fetch: Callable[[str], Path]) -> Mirrored:
    path = folder / f"{variant.name}.safetensors"
    try:
        if path.exists() and not records.record_path(path).exists():
            raise StorageError(f"{path} has no record, so it isn't the mirror's to replace. Move it elsewhere.")
        if _is_there(path, variant):
            return Mirrored(variant, path)
        found = fetch(variant.name)
        record = records.check_full(found, progress=True) | {"variant": variant.name}
        # The record comes first: a file without one is somebody else's, even if this process is killed here.
        files.write_json(records.record_path(path), record)
        if not path.exists() or not os.path.samefile(found, path):
            copy(found, path)  # no link: who writes over the mirror's file must not change the cache's
            _check_copy(path)
        return Mirrored(variant, path)
    except ZooError as error:
        return Mirrored(variant, path, first_sentence(error))


def _check_copy(path: Path) -> None:
    try:
        records.check_full(path, progress=True)
    except CorruptWeightsError:
        path.unlink()
        raise


def _is_there(path: Path, variant: Variant) -> bool:
    """Whether the mirror has the file, and it is right; else it is removed."""
    files.remove_leftovers(path)
    if not path.exists():
        return False
    try:
        if records.check_full(path, progress=True).get("variant") == variant.name:
            return True
        problem = f"{path} is of another variant"
    except CorruptWeightsError as error:
        problem = first_sentence(error)
    _logger.warning("%s. It is fetched again.", problem)
    path.unlink()
    return False


def _write_index(folder: Path, variants: Iterable[Variant]) -> None:
    """List what is in the mirror, that of other runs too: the records say it."""
    listed = []
    for variant in {variant.name: variant for variant in (*VARIANTS, *variants)}.values():
        path = folder / f"{variant.name}.safetensors"
        try:
            record = records.check_quick(path)
        except CorruptWeightsError:  # not there, or not right yet
            continue
        listed.append(
            {
                "variant": variant.name,
                "file": path.name,
                "sha256": record["sha256"],
                "size": record["size"],
                "source": record["source"],
                "license": variant.license,
            }
        )
    files.write_json(folder / INDEX, {"weights": listed})
