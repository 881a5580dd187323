"""Losses of dense matching: disparity or flow with a raw confidence per pixel (CroCo v2, section 4).

All take prediction (B, C, H, W), confidence (B, 1, H, W), both as the head gives them, and truth (B, C, H, W), and
give a scalar: the mean over the known pixels of the batch, 0 if there are none. Unknown truth is infinite or NaN in
all channels of a pixel, and a pixel is known if its first channel is finite. A larger confidence channel stands for
a larger expected error: it is the logarithm of a Laplace distribution's scale, bounded or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MAX_NORM = 1e4  # of a flow that FlyingThings' truth may hold by mistake (CroCo v2's published training)


class DenseLoss(Protocol):
    """prediction, confidence, truth -> a scalar."""

    def __call__(self, prediction: Tensor, confidence: Tensor, truth: Tensor) -> Tensor: ...


def known_pixels(truth: Tensor) -> Tensor:
    """bool (B, H, W): where truth (B, C, H, W) is known."""
    return truth[:, 0].isfinite()


@dataclass(frozen=True)
class L1:
    """The mean absolute error over known pixels and channels; the confidence has no part in it."""

    def __call__(self, prediction: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
        known = known_pixels(truth)
        return _mean(_errors(prediction, truth, known) / truth.shape[1], known)


@dataclass(frozen=True)
class Laplacian:
    """error / exp(c) + c for the raw confidence c: what CroCo-Stereo was trained with for ETH3D."""

    def __call__(self, prediction: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
        known = known_pixels(truth)
        c = confidence[:, 0]
        return _mean(_errors(prediction, truth, known) / c.exp() + c, known)


@dataclass(frozen=True)
class LaplacianBounded:
    """error / s + log s with the scale s in low..high, a sigmoid of the confidence: CroCo-Flow's.

    Pixels whose truth is `max_norm` long or longer are left out.
    """

    low: float = 0.25
    high: float = 4.0
    max_norm: float = MAX_NORM

    def __call__(self, prediction: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
        known = known_pixels(truth)
        known = known & (truth.masked_fill(~known[:, None], 0).norm(dim=1) < self.max_norm)
        scale = (self.high - self.low) * confidence[:, 0].sigmoid() + self.low
        return _mean(_errors(prediction, truth, known) / scale + scale.log(), known)


@dataclass(frozen=True)
class LaplacianBounded2:
    """error / exp(d) + d with the logarithm of the scale d in -bound..bound, 2 bound (sigmoid(c / width) - 0.5):
    CroCo-Stereo's."""

    bound: float = 3.0
    width: float = 3.0

    def __call__(self, prediction: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
        known = known_pixels(truth)
        d = 2 * self.bound * ((confidence[:, 0] / self.width).sigmoid() - 0.5)
        return _mean(_errors(prediction, truth, known) / d.exp() + d, known)


LOSSES: dict[str, type[DenseLoss]] = {
    "l1": L1,
    "laplacian": Laplacian,
    "laplacian_bounded": LaplacianBounded,
    "laplacian_bounded2": LaplacianBounded2,
}
"""Losses by the name that recipes use."""


def _errors(prediction: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """(B, H, W): absolute errors summed over the channels, 0 where the truth is not known. No gradient is NaN there,
    as one of inf - inf, masked afterwards, would be."""
    truth = torch.where(known[:, None], truth, prediction.detach())
    return (prediction - truth).abs().sum(1)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Over the known pixels; masks, no indexing: a GPU would wait to learn how many there are."""
    return (values * known).sum() / known.sum().clamp(min=1)
