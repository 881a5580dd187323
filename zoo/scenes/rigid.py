"""Rigid motions as matrices."""

import math

import numpy as np


def rotation_matrix(x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) rotation by the vector (x, y, z): around its direction, by its length in radians (Rodrigues)."""
    angle = math.sqrt(x * x + y * y + z * z)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=np.float64)
    first = math.sin(angle) / angle if angle > 1e-9 else 1.0
    second = (1 - math.cos(angle)) / angle**2 if angle > 1e-9 else 0.5
    return np.eye(3) + first * cross + second * (cross @ cross)


def rigid_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4) matrix of X -> rotation @ X + translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def camera_motion(turn: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(4, 4) to the coordinates of a camera at `center` (3,), turned by the rotation vector `turn` (3,)."""
    rotation = rotation_matrix(*turn.tolist()).T
    return rigid_matrix(rotation, -rotation @ center)


def move_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(3, N) `points` under the rigid `matrix` (4, 4)."""
    return matrix[:3, :3] @ points + matrix[:3, 3:]


def random_rotations(rng: np.random.Generator, count: int, tilt: np.ndarray) -> np.ndarray:
    """(count, 3, 3): anything where `tilt` (count,) is 1, only around the vertical where it is 0."""
    q = rng.standard_normal((count, 4))
    q[:, [1, 3]] *= tilt[:, None]  # w, x, y, z
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def facing(directions: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations whose z axes point along `directions` (N, 3), which are not vertical."""
    z = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    flat = np.hypot(z[:, 0], z[:, 2])
    cos, sin = z[:, 2] / flat, z[:, 0] / flat
    x = np.stack([cos, np.zeros_like(cos), -sin], axis=1)
    y = np.stack([-z[:, 1] * sin, flat, -z[:, 1] * cos], axis=1)
    return np.stack([x, y, z], axis=2)
