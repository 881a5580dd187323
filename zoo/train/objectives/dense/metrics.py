"""How good disparities and flows are: per batch, over the pixels of a whole data set, and as benchmarks count.

Predictions and truths are (B, C, H, W) in pixels, C = 1 for disparity and 2 for flow; unknown truth is infinite or NaN
(see `dense_losses.known_pixels`). Shares of bad pixels are in percent, of errors strictly above the threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.train.objectives.dense.losses import known_pixels

SPEEDS = ((0.0, 10.0), (10.0, 40.0), (40.0, math.inf))
"""Ranges of the true flow's length in pixels by which Sintel's benchmark splits the end-point error."""

_BATCH_BAD = {1: (0.5, 1.0, 2.0, 3.0), 2: (1.0, 3.0, 5.0)}
_SET_BAD = {1: (0.5, 1.0, 2.0, 3.0), 2: (0.5, 1.0, 3.0, 5.0)}
_OUTLIER_PIXELS, _OUTLIER_SHARE = 3.0, 0.05  # KITTI's D1 and Fl


def batch_metrics(prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Means over the images of the means over their known pixels, scalars; images without a known pixel are left out.

    Stereo: avgerr, rmse (the root for each image), bad@t; flow: EPE, L1err (summed over x and y), bad@t.
    """
    known = known_pixels(truth)
    error = _error(prediction, truth, known)
    counts = known.sum((1, 2))

    def mean(values: Tensor) -> Tensor:  # B, H, W -> B
        return (values * known).sum((1, 2)) / counts.clamp(min=1)

    if truth.shape[1] == 1:
        images = dict(avgerr=mean(error), rmse=mean(error.square()).sqrt())
    else:
        images = dict(EPE=mean(error), L1err=mean(_l1(prediction, truth, known)))
    for threshold in _BATCH_BAD[truth.shape[1]]:
        images[f"bad@{threshold}"] = 100 * mean((error > threshold).float())
    seen = counts > 0
    return {name: (values * seen).sum() / seen.sum().clamp(min=1) for name, values in images.items()}


class SetMetrics:
    """Metrics over all known pixels of a data set, gathered image by image; sums stay on the predictions' device.

    channels: 1 for disparity, 2 for flow.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.names = ["L1err"] if channels == 1 else ["EPE", "L1err"]
        self.names += [f"bad@{threshold}" for threshold in _SET_BAD[channels]]
        self.names.append("D1" if channels == 1 else "Fl")
        self.speeds = [_speed_name(*speeds) for speeds in SPEEDS] if channels == 2 else []
        self.sums = torch.zeros(0)  # of each name's values, then counts of what they are means over

    def add(self, prediction: Tensor, truth: Tensor, step: int = 1) -> None:
        """Take further images into account. step: the truth is so many times larger than the prediction, in whose
        pixels it counts all the same; each predicted pixel is judged by the closest of its step x step true values, as
        Spring's benchmark does with its truth of twice the size (Mehl et al., CVPR 2023)."""
        self.add_sums(self.sums_of(prediction, truth, step))

    def sums_of(self, prediction: Tensor, truth: Tensor, step: int = 1) -> Tensor:
        """What `add` adds, float64 (2, len(names) + len(speeds)): sums, and the pixels they are of."""
        if step > 1:
            truth = _closest_of_blocks(prediction, truth, step)
        known = known_pixels(truth)
        error = _error(prediction, truth, known)
        length = truth.masked_fill(~known[:, None], 0).norm(dim=1)
        values = [error] if self.channels == 1 else [error, _l1(prediction, truth, known)]
        values += [100.0 * (error > threshold) for threshold in _SET_BAD[self.channels]]
        values.append(100.0 * ((error > _OUTLIER_PIXELS) & (error > _OUTLIER_SHARE * length)))
        counted = [known] * len(values)
        if self.channels == 2:
            counted += [known & (length >= low) & (length < high) for low, high in SPEEDS]
            values += [error] * len(SPEEDS)
        rows = [
            ((value * mask).sum(dtype=torch.float64), mask.sum(dtype=torch.float64))
            for value, mask in zip(values, counted, strict=True)
        ]
        return torch.stack([torch.stack(row) for row in rows], dim=1)

    def add_sums(self, sums: Tensor) -> None:
        """Add what `sums_of` gave, here or in another process."""
        self.sums = sums if not len(self.sums) else self.sums + sums

    def compute(self) -> dict[str, float]:
        """Stereo: L1err, bad@t, D1; flow: EPE, L1err, bad@t, Fl, and s0-10, s10-40, s40+: the EPE by the true flow's
        length. NaN for what no pixel tells."""
        if not len(self.sums):
            return {name: math.nan for name in (*self.names, *self.speeds)}
        sums, counts = self.sums.tolist()
        means = [total / count if count else math.nan for total, count in zip(sums, counts)]
        return dict(zip((*self.names, *self.speeds), means))


def pixel_errors(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, H, W): the error of each pixel, a disparity's absolute one or a flow's end-point error; NaN where the truth
    is not known."""
    known = known_pixels(truth)
    return _error(prediction, truth, known).masked_fill(~known, math.nan)


def _error(prediction: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    return (prediction.float() - truth.float()).masked_fill(~known[:, None], 0).norm(dim=1)


def _l1(prediction: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    return (prediction.float() - truth.float()).masked_fill(~known[:, None], 0).abs().sum(1)


def _closest_of_blocks(prediction: Tensor, truth: Tensor, step: int) -> Tensor:
    """(B, C, H, W): for each predicted pixel the one of its step x step true values that is closest to it."""
    blocks = truth.unflatten(3, (-1, step)).unflatten(2, (-1, step)).permute(0, 1, 2, 4, 3, 5).flatten(4)
    known = blocks[:, 0].isfinite()
    errors = (prediction[..., None] - blocks).masked_fill(~known[:, None], 0).norm(dim=1)
    closest = errors.masked_fill(~known, math.inf).argmin(-1)
    return blocks.gather(4, closest[:, None, ..., None].expand(-1, truth.shape[1], -1, -1, -1))[..., 0]


def _speed_name(low: float, high: float) -> str:
    return f"s{low:.0f}+" if math.isinf(high) else f"s{low:.0f}-{high:.0f}"
