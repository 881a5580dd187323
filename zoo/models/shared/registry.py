"""What makes the zoo's models, by name; filled while the families are imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

MODEL_CLASSES: dict[str, Any] = {}
"""The class of each architecture, a ZooModel."""

BUILDERS: dict[str, Callable[..., nn.Module]] = {}
"""Functions that make models of no architecture of their own, by what recipes and records call them."""
