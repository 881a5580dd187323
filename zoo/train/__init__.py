"""Training: `train` runs a recipe; objectives and data of one's own go in by their names, see docs/train.md.

>>> from zoo.train import load_recipe, train
>>> train(load_recipe("croco_nano", {"schedule.length": 100}), "runs/short")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.train.engine import train
    from zoo.train.objectives.objective import Objective
    from zoo.train.recipe import load_recipe

# found when they are asked for: reading a recipe needs no torch
_PUBLIC = {
    "Objective": "zoo.train.objectives.objective",
    "load_recipe": "zoo.train.recipe",
    "train": "zoo.train.engine",
}

__all__ = ["Objective", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'zoo.train' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
