"""Color jitter of a whole batch on its device, drawn for each image on its own in the data workers."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.scenes.torch.random import Draws

_CONTRAST, _SATURATION = 1, 2  # 0 is brightness


def draw_jitter(strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation in random order, by factors 1 - strength .. 1 + strength: (3, 2), each row
    which of them it is and the factor."""
    factors = torch.empty(3).uniform_(1 - strength, 1 + strength, generator=generator)
    order = torch.randperm(3, generator=generator)
    return torch.stack((order.float(), factors[order]), dim=1)


def draw_jitters(strength: float, draws: Draws) -> Tensor:
    """`draw_jitter` for each of a batch, drawn on its device: (B, 3, 2)."""
    factors = draws.uniform(1 - strength, 1 + strength, 3)
    order = draws.unit(3).argsort(dim=1)
    return torch.stack((order.float(), factors.gather(1, order)), dim=2)


def color_jitter(images: Tensor, steps: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) changed by each one's `steps` (B, 3, 2) of `draw_jitter`.

    What torchvision's adjust_brightness, adjust_contrast and adjust_saturation do to an image: each mixes it with
    black, its mean gray or its gray version, and rounds down to 8 bits.
    """
    x = images.float()
    for kind, factor in steps.permute(1, 2, 0)[..., None, None, None]:  # B, 1, 1, 1 each
        gray = (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).floor()
        mixed = torch.where(kind == _CONTRAST, gray.mean((2, 3), keepdim=True), gray * (kind == _SATURATION))
        x = (x * factor + mixed * (1 - factor)).clamp(0, 255).floor()
    return x.to(torch.uint8)
