"""Parts of a model that autocast leaves alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context in which tensors on the device of `like` keep their precision; the meta device knows no autocast."""
    device = like.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
