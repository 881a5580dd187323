"""Models on torch's meta device, where each operation takes a fraction of a millisecond of Python."""

from __future__ import annotations

from typing import Any

import pytest
import timm
from torch import nn

from zoo.models import convmae, fast_itpn, hivit
from zoo.models.croco import blocks

_KEEP_SHAPE = (
    *(blocks.Block, blocks.CrossBlock),
    *(hivit.Block, hivit.MlpBlock),
    *(fast_itpn.EvaBlock, fast_itpn.MlpBlock),
    *(convmae.ConvBlock, nn.BatchNorm2d),
)


def leave_out_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps the shape gives what it gets: for tests of shapes, to which most of the operations add nothing."""
    for block in _KEEP_SHAPE:
        monkeypatch.setattr(block, "forward", lambda self, x, *others: x)


_models: dict[str, nn.Module] = {}


def kept_model(name: str, device: str, **args: Any) -> nn.Module:
    """`timm.create_model` on the meta device, once for all tests that only read its tensors' names and shapes."""
    key = f"{name} {sorted(args.items())}"
    if key not in _models:
        _models[key] = timm.create_model(name, device=device, **args)
    return _models[key]
