"""Two photos to a point cloud: what a pointmap model and `zoo.geometry` make of them, and a picture of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoo import geometry
from zoo.errors import GeometryError
from zoo.models.pointmaps import Photo, PointmapModel, Prediction
from zoo.pictures import color_depth, draw_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEPT = 0.8  # share of the points that are kept when nobody says how sure they are to be
_SIDE = 480  # pixels of a picture of the cloud
_ORBIT = 25.0  # degrees between the first camera and those that the cloud is drawn from, to the left and to the right
_BACKGROUND = 0.12  # gray


@dataclass(frozen=True)
class Reconstruction:
    """What two photos tell of their scene; lengths are in the units of the model's points.

    focal1, focal2: focal lengths in pixels of each photo. pose (4, 4): from camera 1's frame to camera 2's. depth1,
    depth2: z-depth (H, W) of what the model saw of each photo. threshold: the confidence that points are of at least.
    points (N, 3) in camera 1's frame, colors (N, 3) uint8.
    """

    prediction: Prediction
    focal1: float
    focal2: float
    pose: Tensor
    depth1: Tensor
    depth2: Tensor
    threshold: float
    points: Tensor
    colors: Tensor

    @property
    def rotation(self) -> float:
        """By how many degrees camera 2 is turned against camera 1."""
        return geometry.pose_angles(self.pose, torch.eye(4))[0]

    @property
    def center2(self) -> Tensor:
        """Where camera 2 stands, (3,) in camera 1's frame."""
        return -self.pose[:3, :3].T @ self.pose[:3, 3]


def reconstruct(model: PointmapModel, img1: Photo, img2: Photo, threshold: float | None = None) -> Reconstruction:
    """Depth, focal lengths, relative pose and a colored point cloud of two photos, which `PointmapModel.predict` takes.

    The model sees the photos in both orders: view 2's own points give its focal length, and without OpenCV the pose.
    threshold: least confidence of the cloud's points; None: that of the surest four fifths.

    Raises ImageError or GeometryError (ValueErrors).
    """
    pair, swapped = model.predict(img1, img2), model.predict(img2, img1)
    points1, points2, own2 = (torch.from_numpy(p) for p in (pair.points1, pair.points2, swapped.points1))
    confidence1, confidence2, confidence_own2 = (
        torch.from_numpy(c) for c in (pair.confidence1, pair.confidence2, swapped.confidence1)
    )
    focal1, focal2 = geometry.focal_length(points1, confidence1), geometry.focal_length(own2, confidence_own2)
    pose = geometry.relative_pose(points2, focal2, own2, confidence2, confidence_own2)
    if threshold is None:
        threshold = torch.cat((confidence1.flatten(), confidence2.flatten())).quantile(1 - _KEPT).item()
    images = [torch.from_numpy(image.copy()) for image in (pair.image1, pair.image2)]
    points, colors = geometry.point_cloud((points1, points2), images, (confidence1, confidence2), threshold)
    if not len(points):
        raise GeometryError(f"No point has a confidence of {threshold:g}; lower the one that is asked for.")
    return Reconstruction(
        pair,
        focal1 / pair.fit1.scale,
        focal2 / pair.fit2.scale,
        pose,
        geometry.depth_of(points1),
        geometry.depth_of(points2, pose),
        threshold,
        points,
        colors,
    )


def look_from(found: Reconstruction, degrees: float, side: int = _SIDE) -> np.ndarray:
    """The cloud as a camera sees it that has gone around its middle by so many degrees, to the right if positive:
    float (side, side, 3) in 0..1. Near points hide far ones."""
    points = found.points.double()
    middle = points.median(dim=0).values
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    around = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]], dtype=torch.float64)
    back = torch.tensor([0.0, 0.0, 0.25 * middle[2].item()], dtype=torch.float64)  # a step, so that the edges are seen
    seen = (points - middle) @ around.T + middle + back
    height, width = found.prediction.points1.shape[:2]
    focal = found.focal1 * found.prediction.fit1.scale / max(height, width) * side
    ahead = seen[:, 2] > 1e-3 * middle[2].abs()
    seen, colors = seen[ahead], found.colors[ahead].numpy() / 255
    order = seen[:, 2].argsort(descending=True)  # the nearest last: it stays
    x, y = ((focal * seen[order, axis] / seen[order, 2] + side / 2).floor().long().numpy() for axis in (0, 1))
    picture = np.full((side, side, 3), _BACKGROUND)
    size = max(2, round(1.3 * side / max(height, width)))  # of a point, so that the photo's own view has few holes
    offsets = np.arange(size) - size // 2
    rows, columns = (y[:, None, None] + offsets[:, None]), (x[:, None, None] + offsets)
    rows, columns = (grid.reshape(len(x), -1) for grid in np.broadcast_arrays(rows, columns))
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    which = np.broadcast_to(np.arange(len(x))[:, None], rows.shape)
    picture[rows[inside], columns[inside]] = colors[order.numpy()][which[inside]]
    return picture


def draw(found: Reconstruction, title: str = "") -> Figure:
    """Both photos with their depths, and the cloud from two places beside the first camera."""
    pair = found.prediction
    rows = [
        (pair.image1 / 255, color_depth(found.depth1.numpy()), look_from(found, -_ORBIT)),
        (pair.image2 / 255, color_depth(found.depth2.numpy()), look_from(found, _ORBIT)),
    ]
    caption = (
        f"{len(found.points):,} points of a confidence of at least {found.threshold:.2f}, from {_ORBIT:g} degrees to "
        "the left and to the right. Depth: near in yellow, far in blue."
    )
    return draw_images(rows, ("photo", "depth", "points"), title, caption, ("first", "second"), panel=3.2)
