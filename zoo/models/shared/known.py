"""Which published file a checkpoint is, where its tensors are those of several: by what is recorded of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from zoo.catalog import VARIANTS, Source
from zoo.errors import ZooError
from zoo.weights.disk import files, records
from zoo.weights.sources import BUNDLED


def known_variants(path: Path, said: Any, sha256: str | None = None, repo: str | None = None) -> dict[str, str]:
    """Variants whose file this is by the surest sign that there is, with that sign; tensors may still say otherwise.

    said: what the file itself names as its variant. sha256: of the file. repo: the repository of the Hub that it is in.
    """
    record = _record(path)
    lengths = {source: _common_ending(path, source) for variant in VARIANTS for source in variant.sources}
    longest = max(lengths.values(), default=0)
    signs: dict[str, Callable[[Source], bool]] = {
        "by its SHA-256": lambda source: _recorded(source, sha256),
        "by its repository": lambda source: (source.kind, source.location) == ("hub", repo),
        "by the record of its download": lambda source: record.get(source.kind) == source.location,
        "by its name": lambda source: 0 < lengths[source] == longest,
    }
    if any(variant.name == said for variant in VARIANTS):
        return {said: "as it says itself"}
    for sign, shows in signs.items():
        if found := [variant.name for variant in VARIANTS if any(map(shows, variant.sources))]:
            return dict.fromkeys(found, sign)
    return {}


def _recorded(source: Source, sha256: str | None) -> bool:
    recorded = _digest_in_package(source.location) if source.kind == "package" and sha256 else source.recorded_sha256
    return bool(recorded and sha256) and sha256.startswith(recorded)  # type: ignore[union-attr]


@cache
def _digest_in_package(name: str) -> str:
    path = BUNDLED / name
    return files.sha256(path) if path.is_file() else ""


def _record(path: Path) -> dict[str, Any]:
    """What the zoo has noted beside a download."""
    try:
        return records.read_record(path) or {}
    except (ZooError, OSError):
        return {}


def _common_ending(path: Path, source: Source) -> int:
    """How many of the last parts of a path and of a source's are the same: the file's name, its folder's, ..."""
    names = {"url": unquote(urlsplit(source.location).path), "package": source.location}
    theirs = PurePosixPath(names.get(source.kind, source.filename)).parts
    count = 0
    for one, two in zip(reversed(path.parts), reversed(theirs)):
        if one != two:
            break
        count += 1
    return count
