"""Where camera 2 stands: robust relative pose from pointmaps, by PnP (OpenCV) or Procrustes (torch alone)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import GeometryError
from zoo.geometry.cameras import pixel_grid

_HYPOTHESES = 512  # samples of three points; at 50 % outliers all but 1e-29 of such sets hold a clean one
_JUDGES = 1024  # points that the hypotheses are judged by
_ROUNDS = 20  # of reweighted least squares at most
_STILL = 1e-7  # a step that ends them
_TAIL = 4.685  # standard deviations from which on a point counts nothing (Tukey's biweight, 95 % efficient)
_MEDIANS = {2: 1.1774, 3: 1.5382}  # of the length of a vector of so many normal numbers, in their standard deviation
_PIXELS = 0.05  # share of the image's width that a projection may be off in PnP's sampling
_MIN_POINTS = 8


def pose_by_procrustes(points1: Tensor, points2: Tensor, weights: Tensor | None = None, seed: int = 0) -> Tensor:
    """The pose (4, 4) from frame 1 to frame 2 of the same points in both, (..., 3), the scales of which may differ.

    points1, points2: view 2's points as the pair (1, 2) and as the pair (2, 1) give them, say. Translation is in frame
    1's units. Samples of three points vote, then all points are weighed by how well they fit (Tukey's biweight) and
    by 1 / distance^2, since errors of pointmaps grow with distance. weights (...): such as confidences.

    Raises GeometryError (a ValueError) for fewer than 8 points.
    """
    a, b = points1.reshape(-1, 3).double(), points2.reshape(-1, 3).double()
    weight = torch.ones(len(a), device=a.device) if weights is None else weights.reshape(-1)
    good = a.isfinite().all(1) & b.isfinite().all(1) & (weight > 0)
    a, b, weight = a[good], b[good], weight[good].double()
    if len(a) < _MIN_POINTS:
        raise GeometryError(f"{len(a)} points are too few for a pose; lower the confidence that is asked for.")
    reach = b.norm(dim=1).clamp(min=1e-12)  # what an error is measured in

    generator = torch.Generator().manual_seed(seed)
    trios = torch.randint(len(a), (_HYPOTHESES, 3), generator=generator).to(a.device)
    judges = torch.randint(len(a), (min(_JUDGES, len(a)),), generator=generator).to(a.device)
    scale, turn, shift = _similarity(a[trios], b[trios], (weight / reach.square())[trios])
    guess = scale[:, None, None] * (a[judges] @ turn.mT) + shift[:, None]  # hypotheses, judges, 3
    errors = (guess - b[judges]).norm(dim=2) / reach[judges]
    best = errors.nan_to_num(math.inf).median(dim=1).values.argmin()
    scale, turn, shift = scale[best], turn[best], shift[best]
    for _ in range(_ROUNDS):
        moved = scale * (a @ turn.mT) + shift
        # of the middle, so that neither's errors decide what it weighs: a point would weigh more the nearer it erred
        reach = (0.5 * (moved + b)).norm(dim=1).clamp(min=1e-12)
        fit = _tukey((moved - b).norm(dim=1) / reach, dims=3)
        scale, turn, shift = _similarity(a, b, weight * fit / reach.square())
    return _rigid(turn, shift / scale)


def _similarity(a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (...), rotation (..., 3, 3) and shift (..., 3) that take points a (..., N, 3) closest to b, by weighted
    least squares (Umeyama 1991).

    The scale is Horn's symmetric one (1987), the ratio of both spreads: least squares would take the errors of points a
    for spread, and make the scale, and with it the shift, too small.
    """
    weight = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-300))[..., None]
    mean_a, mean_b = (weight * a).sum(-2), (weight * b).sum(-2)
    a, b = a - mean_a[..., None, :], b - mean_b[..., None, :]
    u, _, vt = torch.linalg.svd((weight * b).mT @ a)
    sign = torch.ones_like(mean_a)
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    turn = u @ (sign[..., None] * vt)
    spread_a, spread_b = ((weight * x.square()).sum((-2, -1)).clamp(min=1e-300) for x in (a, b))
    scale = (spread_b / spread_a).sqrt()
    return scale, turn, mean_b - scale[..., None] * (turn @ mean_a[..., None])[..., 0]


def _rigid(turn: Tensor, shift: Tensor) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64, device=turn.device)
    pose[:3, :3], pose[:3, 3] = turn, shift
    return pose.float()


def pose_by_pnp(points2: Tensor, focal: float, weights: Tensor | None = None) -> Tensor:
    """The pose (4, 4) from camera 1 to camera 2, from view 2's points (H, W, 3) in camera 1's frame and its pixels.

    focal: camera 2's, in pixels; its principal point is the middle. weights (H, W): those of 0 are left out. RANSAC,
    then least squares over the inliers. Translation is in the points' units.

    Raises ModuleNotFoundError without OpenCV, GeometryError (a ValueError) if no pose fits.
    """
    import cv2

    height, width, _ = points2.shape
    good = points2.isfinite().all(-1)
    if weights is not None:
        good &= weights > 0
    world = points2[good].double().cpu().numpy()
    pixels = pixel_grid(height, width, points2.device)[good].double().cpu().numpy()
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    if len(world) < _MIN_POINTS:
        raise GeometryError(f"{len(world)} points are too few for a pose; lower the confidence that is asked for.")
    found, turn, shift, inliers = cv2.solvePnPRansac(
        world, pixels, camera, None, iterationsCount=500, reprojectionError=_PIXELS * width, flags=cv2.SOLVEPNP_SQPNP
    )
    if not found or inliers is None:
        raise GeometryError("No pose fits these points; the photos may not show the same scene. Try two others.")
    start = _rigid(torch.from_numpy(np.array(cv2.Rodrigues(turn)[0])), torch.from_numpy(np.array(shift))[:, 0])
    slopes = torch.from_numpy((pixels - camera[:2, 2]) / focal)
    rays = F.normalize(torch.cat((slopes, torch.ones(len(slopes), 1)), dim=1), dim=1)
    base = torch.ones(len(world)) if weights is None else weights[good].cpu()
    return _refine(start, torch.from_numpy(world), rays, base).float()


def _refine(pose: Tensor, points: Tensor, rays: Tensor, weights: Tensor) -> Tensor:
    """The pose that brings points (N, 3) closest to the rays (N, 3), unit vectors from the camera, along which they are
    seen, from one nearby: Gauss and Newton's steps, with points weighed anew by how well they fit (Tukey's biweight).

    A point's error is how far it is from its ray, by its distance. That is linear in the point, so errors of the points
    stay without a mean; those of projections don't, and would make a scene seem wider, and the camera nearer to it.
    """
    pose, rays, weights = pose.double(), rays.double(), weights.double()
    identity = torch.eye(3, dtype=pose.dtype)
    across = identity - rays[:, :, None] * rays[:, None, :]  # what a ray leaves of a vector
    for _ in range(_ROUNDS):
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        reach = (seen * rays).sum(1).clamp(min=1e-9)
        residual = torch.einsum("nij,nj->ni", across, seen) / reach[:, None]
        fit = weights * _tukey(residual.norm(dim=1), dims=2)
        # derivatives by a small turn, then by a shift, of the point in camera 2's frame
        slope = torch.cat((-across @ _cross(seen), across), dim=2) / reach[:, None, None]  # N, 3, 6
        weighed = slope * fit[:, None, None]
        normal = torch.einsum("nij,nik->jk", weighed, slope) + 1e-12 * torch.eye(6, dtype=pose.dtype)
        step = -torch.linalg.solve(normal, torch.einsum("nij,ni->j", weighed, residual))
        change = torch.zeros(4, 4, dtype=pose.dtype)
        change[:3, :3] = _cross(step[None, :3])[0]
        change[:3, 3] = step[3:]
        pose = torch.linalg.matrix_exp(change) @ pose
        if float(step.abs().max()) < _STILL * max(1.0, float(pose[:3, 3].norm())):
            break
    return pose


def _cross(x: Tensor) -> Tensor:
    """The matrices (N, 3, 3) that multiply by vectors (N, 3): [x] y = x cross y."""
    a, b, c = x.unbind(1)
    zero = torch.zeros_like(a)
    return torch.stack((zero, -c, b, c, zero, -a, -b, a, zero), dim=1).unflatten(1, (3, 3))


def _tukey(error: Tensor, dims: int) -> Tensor:
    """What points weigh by the lengths of their errors of `dims` dimensions: Tukey's biweight."""
    deviation = (error.median() / _MEDIANS[dims]).clamp(min=1e-12)
    return (1 - (error / (_TAIL * deviation)).square()).clamp(min=0).square()


def relative_pose(
    points2: Tensor,
    focal: float,
    points2_swapped: Tensor | None = None,
    weights: Tensor | None = None,
    weights_swapped: Tensor | None = None,
) -> Tensor:
    """The pose (4, 4) from camera 1 to camera 2 in the way that is at hand: PnP if OpenCV is, else Procrustes.

    points2: view 2's points of the pair (1, 2), in camera 1's frame. points2_swapped: view 2's of the pair (2, 1), in
    its own. focal: camera 2's. weights: confidences of each.

    Raises GeometryError (a ValueError) without OpenCV and the other direction.
    """
    try:
        return pose_by_pnp(points2, focal, weights)
    except ModuleNotFoundError as error:
        if points2_swapped is None:
            raise GeometryError(
                "A pose from one direction needs OpenCV; pip install opencv-python-headless, or give the points of the "
                "swapped pair too."
            ) from error
    both = [w for w in (weights, weights_swapped) if w is not None]
    together = torch.stack(both).prod(0).sqrt() if both else None
    return pose_by_procrustes(points2, points2_swapped, together)


def pose_angles(pose: Tensor, truth: Tensor) -> tuple[float, float]:
    """How far a pose (4, 4) is from the true one, in degrees: between rotations, and between directions of translation
    (of which the scale is not known); the second is 0 where nothing moved."""
    pose, truth = pose.double().cpu(), truth.double().cpu()
    turn = pose[:3, :3] @ truth[:3, :3].T
    # by the sine of the half angle: the arc cosine of the trace is coarse near 0
    rotation = 2 * math.asin(min(1.0, float((turn - torch.eye(3, dtype=torch.float64)).norm()) / math.sqrt(8)))
    a, b = pose[:3, 3], truth[:3, 3]
    if b.norm() == 0:
        return math.degrees(rotation), 0.0
    return math.degrees(rotation), math.degrees(math.atan2(float(torch.linalg.cross(a, b).norm()), float(a @ b)))
