"""Whose weights a model started from, and whose license they keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from zoo.catalog import VARIANTS, Variant

PERMISSIVE = frozenset(("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit", "unlicense"))
"""Licenses under which weights may be published under another one, in the Hub's spelling."""


@dataclass(frozen=True)
class Ancestor:
    """Whose weights a model started from. name: a variant, a repository of the Hub or a file. license: theirs."""

    name: str
    license: str


def published_variant(name: str) -> Variant | None:
    """The catalog's published weights that a name means: a variant's, an architecture's, or the authors' own file's,
    also as the last part of a repository or path; None if it means none."""
    last = PurePosixPath(name.replace("\\", "/").partition("@")[0].strip()).name.lower()
    last = last.removesuffix(".safetensors")
    for variant in VARIANTS:
        files = (PurePosixPath(source.location).name.lower() for source in variant.sources)
        if variant.sources and last in (variant.name.lower(), variant.architecture.lower(), *files):
            return variant
    return None


def ancestor_of(about: Mapping[str, Any], file: str, license: str) -> Ancestor | None:
    """Whose weights a file holds, by what it says of itself; None for those of a run that started at random.

    Of weights that the catalog knows, the catalog's license counts, whatever the file says. license: of the
    architecture's published weights, as which a file that says nothing counts: a checkpoint of the authors keeps their
    license, whatever its name.
    """
    said = {key: value for key, value in about.items() if isinstance(value, str)}
    names = [said[key] for key in ("base_model", "variant", "init") if said.get(key)]
    for name in names:
        if (variant := published_variant(name)) is not None:
            return Ancestor(_shown(name), variant.license.lower())
    if "license" in said:
        return Ancestor(_shown(said.get("base_model") or file), said["license"])
    if "recipe" in said:
        return None
    return Ancestor(_shown(said.get("variant") or file), license)


def _shown(name: str) -> str:
    """An ancestor's name as a card may say it: a repository as it is, a path of somebody's machine by its last part."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        return name
    return PurePosixPath(name.replace("\\", "/")).name or "a file"


def strictest(*ancestors: Ancestor) -> Ancestor:
    """Of several accounts of the same weights' origin, the one that allows least: licenses are not washed off."""
    return next((ancestor for ancestor in ancestors if ancestor.license.lower() not in PERMISSIVE), ancestors[0])
