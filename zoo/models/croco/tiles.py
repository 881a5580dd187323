"""How CroCo-Stereo and CroCo-Flow cut large images into overlapping tiles, and how much a pixel of a tile counts.

CroCo v2, section 4, and the reference's evaluation (stereoflow), whose names of the confidence modes are kept.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ImageError
from zoo.models.shared.masked import Grid

STEREO_CONFIDENCE = "conf_expsigmoid_15_3"
FLOW_CONFIDENCE = "conf_expsigmoid_10_5"
NO_CONFIDENCE = "none"
"""Of models whose channels are all predicted values: their tiles are averaged plainly."""

_NUMBER = r"(\d+(?:\.\d+)?)"
_EXPSIGMOID = re.compile(f"conf_expsigmoid_{_NUMBER}_{_NUMBER}")
_EXPBETA = re.compile(f"conf_expbeta{_NUMBER}")


def tile_starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of the fewest evenly spread windows that cover `length` and overlap by at least `overlap`."""
    count = 1 + int(np.ceil((length - window) / ((1 - overlap) * window)))
    return [int(start) for start in np.linspace(0, length - window, count).round()]  # halves to even, as the reference


def is_confidence(mode: str) -> bool:
    """Whether there is such a way of weighing tiles."""
    return mode == NO_CONFIDENCE or bool(_EXPSIGMOID.fullmatch(mode) or _EXPBETA.fullmatch(mode))


def check_tiles(tile: Grid, overlap: float, confidence: str, tile_batch: int = 1) -> None:
    """Raises ImageError for settings that no image can be tiled with."""
    if tile_batch < 1:
        raise ImageError(f"A tile_batch of {tile_batch} computes no tile; choose 1 or more.")
    if min(tile) < 1 or not 0 <= overlap < 1:
        raise ImageError(
            f"Tiles of {tile[0]}x{tile[1]} pixels that overlap by {overlap:g} can't cover an image; "
            "choose an overlap of at least 0 and below 1."
        )
    if not is_confidence(confidence):
        raise ImageError(
            f"There is no way of weighing tiles called '{confidence}'; choose conf_expsigmoid_BETA_SCALE, such as "
            f"{STEREO_CONFIDENCE}, conf_expbetaBETA, such as conf_expbeta3, or {NO_CONFIDENCE}."
        )


def tile_weight(dense: Tensor, confidence: str) -> Tensor:
    """What each pixel of a tile (B, C, H, W) counts, from its last channel, which grows with the expected error.

    conf_expsigmoid_<beta>_<scale>: exp(-2 beta (sigmoid(c / scale) - 0.5)). conf_expbeta<beta>: exp(-beta c).
    none: 1. Returns B, 1, H, W.
    """
    raw = dense[:, -1:]
    if match := _EXPSIGMOID.fullmatch(confidence):
        beta, scale = map(float, match.groups())
        return torch.exp(-2 * beta * ((raw / scale).sigmoid() - 0.5))
    if match := _EXPBETA.fullmatch(confidence):
        return torch.exp(-float(match[1]) * raw)
    return torch.ones_like(raw)
