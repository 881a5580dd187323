"""DUSt3R's losses (arXiv 2312.14132, section 3.2) on predicted and true pointmaps."""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA = 0.2  # weight of the confidence's logarithm


def to_first_camera(points: Tensor, camera_to_world1: Tensor) -> Tensor:
    """World points (B, H, W, 3) in the frame of camera 1, whose poses (B, 4, 4) are camera to world."""
    turn, center = camera_to_world1[:, None, :3, :3], camera_to_world1[:, None, None, :3, 3]
    return (points - center) @ turn  # the transposed turn, on column vectors


def scales(points1: Tensor, points2: Tensor, valid1: Tensor, valid2: Tensor) -> Tensor:
    """(B, 1, 1, 1): each pair's mean distance to the origin over the valid points (B, H, W, 3) of both views."""
    total = count = torch.zeros(len(points1), device=points1.device)
    for points, valid in ((points1, valid1), (points2, valid2)):
        distance = torch.linalg.vector_norm(points, dim=-1)
        total = total + torch.where(valid, distance, 0).sum((1, 2))
        count = count + valid.sum((1, 2))
    return (total / count.clamp(min=1)).clamp(min=1e-8)[:, None, None, None]


def point_distances(
    predicted: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Distance of each predicted point to the true one, (B, H, W) for each view, zero where there is none.

    Points (B, H, W, 3) in camera 1's frame, valid (B, H, W) bool. Both sides are divided by their own scale, each pair
    by its own; the gradient passes through the predicted one.
    """
    # what isn't valid may be anything, infinite too: it must not reach the gradient
    true = tuple(torch.where(v[..., None], p, 0) for p, v in zip(true, valid))  # type: ignore[assignment]
    scale, true_scale = scales(*predicted, *valid), scales(*true, *valid)
    one, two = (
        torch.where(v, torch.linalg.vector_norm(p / scale - t / true_scale, dim=-1), 0)
        for p, t, v in zip(predicted, true, valid)
    )
    return one, two


def regression_loss(distances: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> Tensor:
    """Mean distance over all valid pixels of the batch, view 1 plus view 2; a view without any counts 0."""
    return sum(d.sum() / v.sum().clamp(min=1) for d, v in zip(distances, valid))  # type: ignore[return-value]


def confidence_loss(
    distances: tuple[Tensor, Tensor],
    confidences: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    alpha: float = ALPHA,
) -> Tensor:
    """Mean of distance * confidence - alpha * log(confidence), likewise."""
    return sum(  # type: ignore[return-value]
        torch.where(v, d * c - alpha * c.log(), 0).sum() / v.sum().clamp(min=1)
        for d, c, v in zip(distances, confidences, valid)
    )
