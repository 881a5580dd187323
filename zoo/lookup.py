"""Finding catalog entries by the names that people type."""

from __future__ import annotations

import warnings

from zoo.catalog import RENAMED, RETIRED, VARIANTS, Variant
from zoo.errors import UnknownVariantError, printable


def find_variant(name: str) -> Variant:
    """The variant called `name`: "architecture.tag", or "architecture" for its first listed tag.

    Raises UnknownVariantError (a ValueError) that names the nearest variants.
    """
    if (current := current_name(name)) != name:
        warnings.warn(f"{name} is called {current} now.", stacklevel=2)
        name = current
    for variant in VARIANTS:
        if name in (variant.name, variant.architecture):
            return variant
    check_retired(name)
    import difflib  # only for the error, so that `zoo list` starts fast

    if len(name) > 200:  # a file's, maybe, of any length
        name = f"{name[:100]}..."
    known = [variant.name for variant in VARIANTS]
    # what was typed is often the beginning of a long name
    likeness = {other: difflib.SequenceMatcher(None, name, other[: len(name) + 2]).ratio() for other in known}
    near = sorted((other for other in known if likeness[other] > 0.6), key=likeness.__getitem__, reverse=True)[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`zoo list` prints all of them."
    raise UnknownVariantError(f"The zoo has no variant called '{printable(name)}'; {hint}")


def check_retired(name: str) -> None:
    """Raises UnknownVariantError (a ValueError) for a variant that there was once, which says what to take instead."""
    if name in RETIRED:
        raise UnknownVariantError(RETIRED[name])


def current_name(name: str) -> str:
    """What an architecture or variant is called now, by a name that it may have had before."""
    architecture, _, tag = name.partition(".")
    if name in RENAMED:
        return RENAMED[name]
    if tag and architecture in RENAMED:
        return f"{RENAMED[architecture].partition('.')[0]}.{tag}"
    return name
