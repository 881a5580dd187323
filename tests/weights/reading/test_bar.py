"""Any file: at most 5 s and 1 s for each 100 MB of it, at most 200 MB and twice its size, or refused within that.

The corpus is built in tests/support/payloads.py. Time is the processor's own, so that a busy machine changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bar import Bar
from tests.support.payloads import PAYLOADS
from zoo import errors

MEGABYTE = 1e6


@pytest.fixture(scope="module")
def bar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bar]:
    other = tmp_path_factory.mktemp("bar") / "other.pth"
    PAYLOADS["graph as license"](other)
    with Bar(other) as bar:
        yield bar


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload(tmp_path: Path, bar: Bar, name: str) -> None:
    path = tmp_path / "own.pth"
    PAYLOADS[name](path)
    size = path.stat().st_size
    outcome = bar.load(path)
    path.unlink()
    kind = getattr(errors, outcome.kind, None)
    assert kind is not None and issubclass(kind, errors.ZooError), outcome
    assert outcome.seconds < 5 + size / (100 * MEGABYTE), outcome
    assert outcome.bytes < 200 * MEGABYTE + 2 * size, outcome
    assert outcome.text.replace("\n", "").isprintable() and len(outcome.text) < 4100
    assert "\n" not in outcome.text
