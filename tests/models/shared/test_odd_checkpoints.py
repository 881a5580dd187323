"""Checkpoints under a family's own names with tensors that no model has: errors of the zoo, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from zoo import weights
from zoo.catalog import VARIANTS
from zoo.errors import ZooError
from zoo.models.shared import identify
from zoo.weights import Checkpoint

SHAPES = [(), (0,), (7,), (0, 3), (5, 5, 3), (2, 3, 0, 5), (1,) * 8]
TYPES = [torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool, torch.uint16]
FAMILIES = {}  # one small architecture of each
for _variant in VARIANTS:
    if "nano" in _variant.architecture:
        FAMILIES.setdefault((_variant.family, _variant.form), _variant.architecture)


@pytest.mark.parametrize("architecture", FAMILIES.values())
@pytest.mark.parametrize("names", ["own", "reference"])
def test_odd_tensors(architecture: str, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "_recognize", lambda *_: None)  # which other variant it is takes long to find out
    model = timm.create_model(architecture, device="meta")
    try:
        state = model.state_dict() if names == "own" else model.reference_state()
    except ZooError:
        pytest.skip("the reference has no checkpoints of it")
    for shape in SHAPES:
        refused(model, {name: torch.zeros(shape) for name in state}, monkeypatch)
    for dtype in TYPES:
        refused(model, {name: torch.zeros((2,)).to(dtype) for name in state}, monkeypatch)
    for name in [name for name in state if "pos" in name or "table" in name or "rel" in name][:4]:
        for shape in SHAPES:
            odd = {**{key: torch.zeros(value.shape) for key, value in state.items()}, name: torch.zeros(shape)}
            refused(model, odd, monkeypatch)


def refused(model: torch.nn.Module, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "read_checkpoint", lambda path, **_: Checkpoint(tensors, {}, Path(path)))
    with pytest.raises(ZooError) as caught:
        model.load_pretrained("own.pth")
    assert str(caught.value).isprintable()
