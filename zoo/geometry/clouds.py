"""Colored point clouds, as PLY (written here) and GLB (by trimesh)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.errors import GeometryError
from zoo.weights.disk.files import atomic_writer


def point_cloud(
    points: Sequence[Tensor],
    images: Sequence[Tensor],
    confidences: Sequence[Tensor] | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Maps of points (H, W, 3), in one frame, with their images, uint8 (H, W, 3) -> points (N, 3) and colors (N, 3).

    Points that are not finite, or of a confidence (H, W) under the threshold, are left out.
    """
    kept_points, kept_colors = [], []
    for i, (values, image) in enumerate(zip(points, images, strict=True)):
        kept = values.isfinite().all(-1)
        if confidences is not None:
            kept &= confidences[i] >= threshold
        kept_points.append(values[kept])
        kept_colors.append(image[kept])
    return torch.cat(kept_points), torch.cat(kept_colors)


def write_ply(path: str | Path, points: Tensor, colors: Tensor) -> Path:
    """Points (N, 3) and their colors, uint8 (N, 3), as a binary PLY file in the points' own axes; whole or not at all.

    Raises StorageError (an OSError) if it can't be written.
    """
    vertices = np.zeros(len(points), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points.float().cpu().numpy(), colors.cpu().numpy()
    coordinates = "".join(f"property float {axis}\n" for axis in "xyz")
    channels = "".join(f"property uchar {channel}\n" for channel in ("red", "green", "blue"))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{coordinates}{channels}end_header\n"
    with atomic_writer(Path(path)) as file:
        file.write(header.encode())
        file.write(vertices.tobytes())
    return Path(path)


def write_glb(path: str | Path, points: Tensor, colors: Tensor) -> Path:
    """The same as a GLB file, whose axes are y up and z towards the viewer, as glTF has them.

    Raises ModuleNotFoundError without trimesh, GeometryError (a ValueError) for no points, which glTF can't hold.
    """
    import trimesh

    if not len(points):
        raise GeometryError("A GLB file can't be empty; lower the confidence that is asked for.")
    flipped = points.float().cpu().numpy() * np.array([1, -1, -1], dtype=np.float32)
    scene = trimesh.Scene(trimesh.PointCloud(flipped, colors=colors.cpu().numpy()))
    with atomic_writer(Path(path)) as file:
        file.write(scene.export(file_type="glb"))
    return Path(path)
