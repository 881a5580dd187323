"""Rays through pixels and what of a scene they hit first: analytic ray casting on whole arrays."""

from typing import NamedTuple

import numpy as np

from zoo.scenes.config import SceneConfig
from zoo.scenes.scene import BOXES, Solids

NEAR = 1e-3  # z-depth from which on a point is in front of a camera


class Hit(NamedTuple):
    """Where rays of V views meet the scene first."""

    eye: np.ndarray  # 3, V, 1: where each camera stands, in world coordinates
    directions: np.ndarray  # 3, V, N: the rays in the world, of unit z-depth
    depth: np.ndarray  # V, N: z-depth
    solid: np.ndarray  # V, N: row in the solids


def first_hit(solids: Solids, cameras: np.ndarray, rays: np.ndarray) -> Hit:
    """What the camera `rays` (3, 1, N), of unit z, of `cameras` (V, 4, 4) hit first.

    The cameras stand in the room and in no object, so every ray hits something.
    """
    turns = cameras[:, :3, :3]
    eye = -np.einsum("vji,vj->iv", turns, cameras[:, :3, 3])[:, :, None]
    directions = turns.transpose(2, 0, 1).reshape(-1, 3) @ rays[:, 0]
    directions = directions.reshape(3, len(cameras), -1) + np.float32(1e-20)  # never exactly zero
    depth = ((np.copysign(solids.half_sizes[0][:, None, None], directions) - eye) / directions).min(0)
    solid = np.zeros(depth.shape, np.intp)
    used = np.flatnonzero(solids.used)
    for rows, hit_all in (
        (used[(used > 0) & (used <= BOXES)], _hit_boxes),
        (used[used > BOXES], _hit_balls),
    ):
        for row, hit in zip(rows, hit_all(solids, rows, eye, directions), strict=True):
            np.copyto(solid, row, where=hit < depth)
            np.minimum(depth, hit, out=depth)
    return Hit(eye, directions, depth, solid)


def _hit_boxes(solids: Solids, rows: np.ndarray, eye: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """t (R, V, N) where rays `eye` (3, V, 1) + t * `directions` (3, V, N) enter `rows` (R,), or infinity."""
    inward = solids.rotations[rows].transpose(0, 2, 1)
    start = inward @ (eye[:, :, 0] - solids.centers[rows][:, :, None])  # boxes, 3, V
    pace = (inward.reshape(-1, 3) @ directions.reshape(3, -1)).reshape(len(rows), *directions.shape)
    pace += np.float32(1e-20)  # never exactly zero
    np.divide(1, pace, out=pace)
    reach = np.abs(pace)
    reach *= solids.half_sizes[rows][:, :, None, None]
    pace *= -start[..., None]  # t at the box's middle planes; the slab of an axis is from there - reach to + reach
    enter = (pace - reach).max(1)
    pace += reach
    enter[(enter >= pace.min(1)) | (enter <= 0)] = np.inf
    return enter


def _hit_balls(solids: Solids, rows: np.ndarray, eye: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """t (R, V, N) where rays `eye` (3, V, 1) + t * `directions` (3, V, N) enter `rows` (R,), or infinity."""
    start = eye[:, :, 0] - solids.centers[rows][:, :, None]  # balls, 3, V
    square = np.einsum("ivn,ivn->vn", directions, directions)
    half = np.einsum("siv,ivn->svn", start, directions)  # t solves square * t^2 + 2 * half * t + rest = 0
    rest = (start * start).sum(1) - solids.half_sizes[rows][:, :1] ** 2
    inner = half * half - square * rest[:, :, None]
    enter = (-half - np.sqrt(np.maximum(inner, 0))) / square
    enter[(inner <= 0) | (enter <= 0)] = np.inf
    return enter


def visible(solids: Solids, camera: np.ndarray, points: np.ndarray, focal: float, aspect: float) -> np.ndarray:
    """Whether `camera` sees the surface points (3, N), given in its coordinates: bool (N,).

    Exact: casts a ray at each instead of looking it up in a rendered depth map.
    """
    targets, inside = project(points, focal, aspect)
    rays = np.concatenate([targets, np.ones_like(targets[:1])])
    depth = first_hit(solids, camera[None], rays[:, None]).depth[0]
    return inside & (np.abs(depth - points[2]) < 1e-3 * depth)


def project(points: np.ndarray, focal: float, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z (2, N) of camera points (3, N), and whether they lie in the image: bool (N,)."""
    ahead = points[2] > NEAR
    targets = points[:2] / np.where(ahead, points[2], 1)
    edge = 0.5 / focal
    return targets, ahead & (np.abs(targets[0]) < edge) & (np.abs(targets[1]) < edge * aspect)


def pixel_rays(config: SceneConfig, focal: float, fine: int) -> np.ndarray:
    """Camera rays of unit z through the centers of the (finer) pixels: float32 (3, H * W * fine^2)."""
    x = ((np.arange(config.width * fine) + 0.5) / fine - config.width / 2) / (focal * config.width)
    y = ((np.arange(config.height * fine) + 0.5) / fine - config.height / 2) / (focal * config.width)
    rays = np.ones((3, len(y), len(x)), np.float32)
    rays[0], rays[1] = x, y[:, None]
    return rays.reshape(3, -1)
