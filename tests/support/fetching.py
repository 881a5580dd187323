"""What the tests of docs/faults.md share: weights that are fetched, and whether they arrive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save

import zoo  # noqa: F401
from tests.support.checkpoints import RULES, convert, reference_state, torch_bytes
from zoo.catalog import Variant
from zoo.errors import WeightsUnavailableError, ZooError
from zoo.weights import cache_dir, cached_path, fetch, verify

STATE = reference_state(dim=64)  # 120 kB
CONTENT = torch_bytes({"model": STATE})
REPO = "zoo-org/croco_test.tag"
WEIGHTS = RULES.to_zoo(STATE, name="v")
ON_HUB = save(WEIGHTS)
NOBODY = 65534

Reads = Callable[[object], None]


def refused(variant: Variant, kind: type[ZooError] = WeightsUnavailableError) -> ZooError:
    """The error of a fetch that fails, and leaves nothing that could be taken for weights."""
    with pytest.raises(kind) as caught:
        fetch(variant, convert)
    assert not cached_path(variant).exists() and not list(cache_dir().rglob(".*.tmp"))
    return caught.value


def arrived(variant: Variant) -> None:
    """A fetch that works, and brings the right weights."""
    tensors = load_file(fetch(variant, convert))
    expected = RULES.to_zoo(STATE, name="v")
    assert set(tensors) == set(expected) and all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert [report.problem for report in verify(variant) if report.problem] == []
