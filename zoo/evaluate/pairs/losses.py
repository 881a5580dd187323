"""Losses of predictions, split into color and structure, and by how far patches moved."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.layers.patchify import patchify

BIN_EDGES = (4, 7, 10)  # pixels of displacement between the bins, in images 64 pixels wide


class Moments(NamedTuple):
    """All that the losses of a prediction need, for every scaling of it: means over a patch's values of
    prediction * prediction, prediction * target and target * target; each (P, n, 2), color and structure."""

    pp: Tensor
    pt: Tensor
    tt: Tensor

    def error(self, scale: Tensor | float = 1.0) -> Tensor:
        """Squared error (P, n, 2) of `scale` * prediction; scale: a number, or (2,) for color and structure."""
        return self.pp * scale**2 - 2 * self.pt * scale + self.tt

    def one_scalar(self) -> Tensor:
        """The scale (2,), the same twice, of least error over the whole set."""
        return (self.pt.sum() / self.pp.sum()).expand(2)

    def two_scalars(self) -> Tensor:
        """The scales (2,) of color and structure of least error over the whole set."""
        return self.pt.sum((0, 1)) / self.pp.sum((0, 1))


def moments(prediction: Tensor, target: Tensor, channels: int = 3) -> Moments:
    """(P, n, Q * C) both -> their `Moments`; the colors are orthogonal to the rest, so the parts add up."""
    # float64, because a small error is the difference of large moments
    prediction, target = (x.double().unflatten(2, (-1, channels)) for x in (prediction, target))

    def parts(a: Tensor, b: Tensor) -> Tensor:
        color = (a.mean(2) * b.mean(2)).mean(-1)
        return torch.stack((color, (a * b).mean((2, 3)) - color), dim=-1)

    return Moments(parts(prediction, prediction), parts(prediction, target), parts(target, target))


def loss_parts(error: Tensor) -> dict[str, float]:
    """Squared errors (..., 2) -> the mean loss and its parts."""
    color, structure = error.flatten(0, -2).mean(0).tolist()
    return dict(loss=color + structure, color=color, structure=structure)


def loss_table(found: dict[str, Moments]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Errors (P, n, 2) of every row of the table, from the moments of the predictions; and the fitted scalars.

    Scalars are fitted, by least squares, over the whole set that they are then measured on.
    """
    errors = {name: found[name].error() for name in ("right", "wrong", "zeros", "copy")}
    copy, shift = found["copy"], found["global_shift"]
    only_color = torch.tensor([1.0, 0.0], dtype=torch.float64)
    scalars = dict(
        copy_one_scalar=copy.one_scalar(),
        color_copy_one_scalar=copy.two_scalars() * only_color,
        global_shift_one_scalar=shift.one_scalar(),
        global_shift_two_scalars=shift.two_scalars(),
    )
    errors["copy_one_scalar"] = copy.error(scalars["copy_one_scalar"])
    errors["color_copy"] = copy.error(only_color)
    errors["color_copy_one_scalar"] = copy.error(scalars["color_copy_one_scalar"])
    errors["global_shift"] = shift.error()
    for name in ("global_shift_one_scalar", "global_shift_two_scalars"):
        errors[name] = shift.error(scalars[name])
    errors |= {name: found[name].error() for name in ("self", "shuffled", "oracle")}
    return errors, {name: scale.tolist() for name, scale in scalars.items()}


def displacement_bins(width: int) -> dict[str, tuple[float, float]]:
    """Names and ranges, in pixels, of the bins of displacement in images `width` pixels wide."""
    edges = [edge * width / 64 for edge in BIN_EDGES]
    ranges = pairwise([0.0, *edges, math.inf])
    return {f"{low:g}+" if high == math.inf else f"{low:g}-{high:g}": (low, high) for low, high in ranges}


def patch_displacement(flow: Tensor, patch_size: int) -> Tensor:
    """flow (P, 2, H, W) -> the median length of each patch's (P, N), in pixels; NaN where all of it is unknown."""
    return patchify(flow.norm(dim=1, keepdim=True), patch_size).nanmedian(dim=-1).values
