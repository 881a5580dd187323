"""One of each kind by default, all of them with `pytest -m slow`: for cases that differ in little more than a name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def first_of_each(cases: Iterable[Any], kind: Callable[[Any], Hashable]) -> list[Any]:
    """The cases, of which all but the first of each kind are slow."""
    seen: set[Hashable] = set()
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=pytest.mark.slow) if kind(case) in seen else case)
        seen.add(kind(case))
    return marked
