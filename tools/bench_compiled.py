"""What compiling blocks is worth on a CPU, family by family: rows of tools/bench.py."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import torch
from torch import nn

from tools.bench_compare import compare
from tools.bench_scale import COMPILED, Scale
from zoo import compile_blocks

_GAIN = 0.9  # of the time
_FAMILIES = 2


def bench_compiled(repeats: int, scale: Scale) -> dict[str, Any]:
    """A backbone of each family, forward_features and a training step of it (forward + backward), its blocks compiled
    against as it comes: at most 0.9 of the forward's time for two families."""
    families, backend = scale.compiled
    x = scale.images()
    tested = dict(islice(COMPILED.items(), families))
    ratios: dict[str, float] = {}
    for family, name in tested.items():
        plain = scale.create(name, num_classes=0).eval()
        compiled = compile_blocks(copy.deepcopy(plain), backend)
        with torch.inference_mode():
            found = compare(lambda m=compiled: m.forward_features(x), lambda m=plain: m.forward_features(x), repeats)
        ratios[f"{family}_ratio"] = found["ratio"]
        plain.train()
        compiled = compile_blocks(copy.deepcopy(plain), backend)
        found = compare(lambda m=compiled: _step(m, x), lambda m=plain: _step(m, x), max(1, repeats // 3))
        ratios[f"{family}_step_ratio"] = found["ratio"]
        torch.compiler.reset()
    gained = sum(ratios[f"{family}_ratio"] <= _GAIN for family in tested)
    return dict(families=gained, **ratios, bar=f"families >= {_FAMILIES}", holds=gained >= _FAMILIES)


def _step(model: Any, x: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    found: torch.Tensor = model.forward_features(x)
    nn.functional.mse_loss(found, torch.zeros_like(found)).backward()
