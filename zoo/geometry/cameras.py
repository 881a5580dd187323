"""Between pixels and points: a pinhole camera's rays, depth, and its focal length from a pointmap."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import GeometryError

_ROUNDS = 20  # of reweighting; the focal length stands after about 10
_FAR = 0.25  # share of the image's longer side by which a projected point may miss its pixel
_NEAREST = 1e-6  # share of the map's median depth under which a point is behind the camera


def pixel_grid(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Pixel centers (H, W, 2) as x, y: the first is (0.5, 0.5)."""
    y = torch.arange(height, device=device) + 0.5
    x = torch.arange(width, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """z-depth (..., H, W) and intrinsics (..., 3, 3) in pixels -> points (..., H, W, 3) in the camera's frame."""
    height, width = depth.shape[-2:]
    pixels = pixel_grid(height, width, depth.device)
    focal = torch.stack((intrinsics[..., 0, 0], intrinsics[..., 1, 1]), dim=-1)
    rays = (pixels - intrinsics[..., None, None, :2, 2]) / focal[..., None, None, :]
    return torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1) * depth[..., None]


def move(points: Tensor, pose: Tensor) -> Tensor:
    """Points (..., H, W, 3) under rigid motions or similarities (..., 4, 4)."""
    return points @ pose[..., None, :3, :3].mT + pose[..., None, None, :3, 3]


def depth_of(points: Tensor, pose: Tensor | None = None) -> Tensor:
    """z-depth (..., H, W) of points (..., H, W, 3) in their own frame or, with `pose`, in the camera that it leads to:
    view 2's depth is that of its points under the pose from camera 1 to 2."""
    return (points if pose is None else move(points, pose))[..., 2]


def focal_length(points: Tensor, weights: Tensor | None = None) -> float:
    """Focal length in pixels of the camera whose own pointmap this is (H, W, 3), principal point in the middle.

    The one that minimizes the (weighted) sum of distances, not squares, between pixels and projected points, by
    Weiszfeld's reweighting: a third of the points may be anywhere (DUSt3R, section 3.3). weights: (H, W), such as
    confidences; those of 0 are left out.

    Raises GeometryError (a ValueError) if no point lies before the camera.
    """
    height, width, _ = points.shape
    points = points.double()
    finite = points.isfinite().all(-1)
    ahead = finite & (points[..., 2] > 0)
    if weights is not None:
        ahead &= weights > 0
    if not ahead.any():
        raise GeometryError(
            "None of these points lies before the camera, so they give no focal length. Give view 1's points."
        )
    ahead &= points[..., 2] > _NEAREST * points[..., 2][ahead].median()
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64, device=points.device)
    pixels = (pixel_grid(height, width, points.device).double() - middle)[ahead]  # N, 2
    slopes = points[ahead][:, :2] / points[ahead][:, 2:]
    base = torch.ones(len(pixels), dtype=torch.float64, device=points.device)
    if weights is not None:
        base = weights[ahead].double()

    # each pixel alone says |pixel| / |slope|; their weighted median is a start that outliers don't move, and those
    # that it throws far out of the image, whose sum of distances alone would decide, are left out
    radius = pixels.norm(dim=1)
    ratios, order = (radius / slopes.norm(dim=1).clamp(min=1e-12)).sort()
    share = (base * radius)[order].cumsum(0)
    focal = ratios[torch.searchsorted(share, share[-1] / 2)]
    near = (pixels - focal * slopes).norm(dim=1) < _FAR * max(height, width)
    pixels, slopes, base = pixels[near], slopes[near], base[near]
    for _ in range(_ROUNDS):
        residual = (pixels - focal * slopes).norm(dim=1)
        weight = base / residual.clamp(min=1e-6 * max(height, width))
        focal = (weight * (pixels * slopes).sum(1)).sum() / (weight * slopes.square().sum(1)).sum()
    return focal.item()
