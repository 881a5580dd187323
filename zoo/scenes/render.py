"""A scene's views and their geometry, rendered by plain array mathematics in numpy: no randomness."""

from dataclasses import dataclass

import numpy as np

from zoo.scenes.config import SceneConfig
from zoo.scenes.draw import sample_scene
from zoo.scenes.rays import NEAR, Hit, first_hit, pixel_rays, project, visible
from zoo.scenes.rigid import move_points
from zoo.scenes.scene import BOXES, Scene
from zoo.scenes.textures import lattice_table, texture

_BAND = 4096  # rays rendered at a time, so that the temporary arrays stay in the cache


@dataclass
class ScenePair:
    """Two views of a scene and what connects them.

    Attributes:
        img1, img2: uint8 (H, W, 3), RGB.
        depth1, depth2: float32 (H, W), z-depth at the pixel centers in scene units, finite and positive.
        intrinsics: float32 (3, 3) of both cameras in pixels, pixel centers at integer + 0.5.
        pose: float32 (4, 4), from camera-1 to camera-2 coordinates.
        flow: float32 (H, W, 2) in pixels (x, y): where the point seen at each pixel center of img1 lies in
            img2, minus where it lies in img1. Defined for hidden points too; inf for points behind camera 2.
        covisible: bool (H, W): that point lies inside img2 and nothing hides it there.
    """

    img1: np.ndarray
    img2: np.ndarray
    depth1: np.ndarray
    depth2: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray
    flow: np.ndarray
    covisible: np.ndarray

    @property
    def disparity(self) -> np.ndarray:
        """float32 (H, W) in pixels: how far left of its place in img1 a point lies in img2, hidden ones too.

        Only of a rectified pair, whose cameras differ along x alone. It is the exact one, focal length times baseline
        over depth, and so free of the flow's rounding.
        """
        return -self.pose[0, 3] * self.intrinsics[0, 0] / self.depth1

    @property
    def points1(self) -> np.ndarray:
        """What the pixels of img1 show, in camera-1 coordinates: float32 (H, W, 3)."""
        return self._rays() * self.depth1[..., None]

    @property
    def points2(self) -> np.ndarray:
        """What the pixels of img2 show, in camera-1 coordinates too: float32 (H, W, 3)."""
        points = self._rays() * self.depth2[..., None]
        return (points - self.pose[:3, 3]) @ self.pose[:3, :3]  # the transposed turn, on rows

    def _rays(self) -> np.ndarray:
        """Camera rays of unit z through the pixel centers: float32 (H, W, 3)."""
        height, width = self.depth1.shape
        y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        rays[..., :2] = (rays[..., :2] - self.intrinsics[:2, 2]) / self.intrinsics[0, 0]
        return rays


def render_pair(config: SceneConfig, seed: int, index: int) -> ScenePair:
    """Pair `index` of the endless sequence `seed`, both non-negative; same arguments, same bits."""
    return render(config, sample_scene(config, seed, index))


def render(config: SceneConfig, scene: Scene) -> ScenePair:
    """Both views of `scene` and their geometry, by float32 array mathematics without randomness."""
    (img1, img2), (depth1, depth2) = render_views(config, scene)
    focal, aspect = scene.focal, config.height / config.width
    intrinsics = np.eye(3, dtype=np.float32)
    intrinsics[0, 0] = intrinsics[1, 1] = focal * config.width
    intrinsics[:2, 2] = config.width / 2, config.height / 2
    first, second = scene.cameras.astype(np.float64)
    pose = (second @ np.linalg.inv(first)).astype(np.float32)

    rays = pixel_rays(config, focal, 1)
    points = move_points(pose, rays * depth1.reshape(-1))
    seen = visible(scene.solids, scene.cameras[1], points, focal, aspect)
    targets, _ = project(points, focal, aspect)
    flow = np.where(points[2] > NEAR, (targets - rays[:2]) * intrinsics[0, 0], np.float32(np.inf))
    shape = config.height, config.width
    return ScenePair(
        img1,
        img2,
        depth1,
        depth2,
        intrinsics,
        pose,
        flow=flow.T.reshape(*shape, 2),
        covisible=seen.reshape(shape),
    )


def render_views(config: SceneConfig, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All of the scene's V views at once: uint8 images (V, H, W, 3) and float32 z-depths (V, H, W)."""
    height, width, fine = config.height, config.width, config.supersample
    views = len(scene.cameras)
    rays = pixel_rays(config, scene.focal, fine)
    pixel = 1 / (scene.focal * width * fine)  # width of a ray's footprint at unit depth
    table = lattice_table(scene.lattice)
    colors, depth = np.empty((3, views, rays.shape[1]), np.float32), np.empty((views, rays.shape[1]), np.float32)
    for start in range(0, rays.shape[1], _BAND):
        band = slice(start, start + _BAND)
        hit = first_hit(scene.solids, scene.cameras, rays[:, None, band])
        colors[:, :, band] = _shade(config, scene, table, rays[:, None, band], hit, pixel)
        depth[:, band] = hit.depth
    if fine > 1:
        colors = colors.reshape(3, views, height, fine, width, fine).mean((3, 5))
        # Depth is of the pixel centers, through which no finer ray passes if there is an even number of them.
        depth = first_hit(scene.solids, scene.cameras, pixel_rays(config, scene.focal, 1)[:, None]).depth
    images = (colors * 255 + 0.5).astype(np.uint8).reshape(3, views, height, width).transpose(1, 2, 3, 0)
    return np.ascontiguousarray(images), depth.reshape(views, height, width)


def _shade(
    config: SceneConfig, scene: Scene, table: np.ndarray, rays: np.ndarray, hit: Hit, pixel: float
) -> np.ndarray:
    """RGB (3, V, N) in 0..1 of what the camera `rays` (3, 1, N) of V views `hit`.

    `table` is of `lattice_table`; `pixel` is the width of a ray's footprint at unit depth.
    """
    solid = hit.solid
    points = hit.eye + hit.directions * hit.depth
    points -= np.take(scene.solids.centers.T, solid, axis=1)
    axes = np.take(scene.solids.rotations.reshape(-1, 9).T, solid, axis=1)
    axes = axes.reshape(3, 3, *solid.shape)  # world, local, V, N
    local = np.einsum("ivn,ijvn->jvn", points, axes)
    half = np.take(scene.solids.half_sizes.T, solid, axis=1)
    room, ball = solid == 0, solid > BOXES

    # The side of a box, or of the room, that a point lies on is the one it is closest to.
    unit = local / half
    near = np.abs(unit)
    on_side = near == near.max(0)  # along x, y, z; V, N
    normal = np.einsum("jvn,ijvn->ivn", unit * (on_side | ball), axes)
    lit = np.where(room, -1, np.float32(1)) * np.einsum("i,ivn->vn", scene.light, normal)
    side = 2 * on_side[1] + 4 * on_side[2] + ((unit * on_side).sum(0) > 0)  # -x, +x, -y, +y, -z, +z

    # Surface coordinates: the two others on a side; on a ball Lambert's azimuthal equal-area map, which is
    # smooth but at the pole that faces away.
    surface = np.where(room, side, solid + 5)
    bulge = np.sqrt(2 / np.maximum(1 + unit[2], 1e-3))
    shift = side.astype(np.float32) * 17.3  # so that the sides of a box differ
    x, y, z = local
    u = np.where(ball, x * bulge, np.where(on_side[0], z, x) + shift)
    v = np.where(ball, y * bulge, np.where(on_side[1], z, y) + shift)

    facing = np.abs(np.einsum("ivn,ivn->vn", normal, hit.directions))  # cosine times the length of the ray
    footprint = pixel * hit.depth * (rays * rays).sum(0) / np.maximum(facing, 0.3)
    # Half of the light wraps around objects, so that their dark sides keep texture to match.
    return np.clip(texture(config, scene, table, surface, u, v, footprint) * (0.72 + 0.36 * lit), 0, 1)
