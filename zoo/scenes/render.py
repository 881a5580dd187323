"""Procedural image pairs for cross-view completion: textured rooms with boxes and balls, seen by two cameras.

Rendered pairs come with exact geometry and cost no download, and a pair is a pure function of (seed, index),
so any worker, rank or resumed run finds the same one.

`sample_scene` draws every random number of a pair into a few arrays of fixed size; `render` is plain array
mathematics on them (analytic ray casting, textures in closed form), so a batched port needs only the latter.

Conventions. World and cameras: x right, y down, z forward; world points X, camera points `camera @ X`.
Lengths are in scene units (a room is a few units wide). Pixel centers lie at integer + 0.5, so the top left
corner of the image is (0, 0), its middle (W / 2, H / 2), and intrinsics scale with the image. Depth is
z-depth: along the optical axis, not along the ray.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import DataError, RecipeError

_BOXES, _BALLS = 5, 3  # slots for objects; a scene leaves some of them empty
_SURFACES = 6 + _BOXES + _BALLS  # the room's six sides, then one texture per object
_NOISE_CELLS = 64  # side of the periodic noise lattice
_OCTAVES = 3
_OCTAVE_RATIO = 2.2  # of lattice densities; not 2, so that the lattices of two octaves never line up
_OCTAVE_TURN = 0.7  # radians between the lattices of successive octaves, which hides their axes
_NEAR = 1e-3  # z-depth from which on a point is in front of a camera
_BAND = 4096  # rays rendered at a time, so that the temporary arrays stay in the cache
_IMAGE_SIDE = 256  # texels of a user's texture at its finest level
_IMAGE_LEVELS = 8  # 256 ... 2 texels
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_PROBE_SIDE = 12  # probe rays per image side, which place the second camera
_MIN_OVERLAP = 0.65  # least share of co-visible probe rays
_MOTIONS = 8  # motions tried for the second camera of a scene
_CLEARANCE = 0.3  # scene units that the cameras keep from walls and objects


@dataclass(frozen=True)
class SceneConfig:
    """What is rendered; hashable and picklable.

    Attributes:
        image_size: height and width in pixels, or one number for both.
        supersample: rays per pixel and axis; 2 makes each pixel the mean of 2 x 2 rays.
        displacement: range of the median displacement of co-visible pixels between the views, as a fraction
            of the image width. A pair's wish is uniform in it, and met but for a few pairs of odd geometry.
        texture_scale: range of the textures' dominant wavelength, as a fraction of the image width when seen
            at the median depth of the scene. Coarser is easier to match.
        textures: a folder (searched recursively) of images, put on about half of the surfaces.
    """

    image_size: tuple[int, int] | int = 64
    supersample: int = 1
    displacement: tuple[float, float] = (0.03, 0.2)
    texture_scale: tuple[float, float] = (0.12, 0.35)
    textures: str | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.supersample) < 1:
            raise RecipeError("A scene needs image_size and supersample of at least 1. Raise the smaller one.")
        for name in ("displacement", "texture_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RecipeError(
                    f"{name} of a scene is {low, high}, no range of positive fractions of the image width. "
                    "Give (low, high) with 0 < low <= high."
                )

    @property
    def height(self) -> int:
        """Image height in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Image width in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]


class Solids(NamedTuple):
    """The shapes of a scene, all float32 but `used`. Row 0 is the room, seen from inside; then boxes; balls.

    Attributes:
        centers: (S, 3) in world coordinates; the room's is the origin.
        rotations: (S, 3, 3), local to world; the room's is the identity.
        half_sizes: (S, 3), along the local axes; a ball's radius, three times.
        used: bool (S,), False for empty slots.
    """

    centers: np.ndarray
    rotations: np.ndarray
    half_sizes: np.ndarray
    used: np.ndarray


class Surfaces(NamedTuple):
    """The textures of a scene, all float32 but `image`.

    Rows 0 to 5 are the room's sides: -x, +x, -y, +y, -z, +z; then boxes, then balls.

    Attributes:
        cells: (T, 6), a 2x3 affine map from surface coordinates (scene units) to cells of the noise lattice.
        waves: (T, 5), the pattern sin(2 pi a u) * sin(2 pi (b v + c)): a, b, c, then how many wavelengths the
            noise bends it, then how sharp its edges are. b = 0 makes stripes.
        noise: (T, 2), the amplitude ratio of successive octaves, and how sharp the edges of the blobs are.
        colors: (T, 4, 3) RGB in 0..1: the mean, then what one unit of each noise channel and of the pattern
            adds.
        image: int32 (T,), which of the user's textures replaces the procedural one, or -1.
    """

    cells: np.ndarray
    waves: np.ndarray
    noise: np.ndarray
    colors: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Everything random about a pair, in arrays of fixed size, independent of the image size.

    Attributes:
        focal: focal length in image widths.
        cameras: float32 (2, 4, 4), from world to camera coordinates.
        light: float32 (3,), unit vector from a surface towards the light.
        lattice: float32 (2, 64, 64), two noises in -1..1, shared by all textures at random offsets.
        solids: the shapes.
        surfaces: their textures.
    """

    focal: float
    cameras: np.ndarray
    light: np.ndarray
    lattice: np.ndarray
    solids: Solids
    surfaces: Surfaces


@dataclass
class ScenePair:
    """Two views of a scene and what connects them.

    Attributes:
        img1, img2: uint8 (H, W, 3), RGB.
        depth1, depth2: float32 (H, W), z-depth at the pixel centers in scene units, finite and positive.
        intrinsics: float32 (3, 3) of both cameras in pixels, pixel centers at integer + 0.5.
        pose: float32 (4, 4), from camera-1 to camera-2 coordinates.
        flow: float32 (H, W, 2) in pixels (x, y): where the point seen at each pixel center of img1 lies in
            img2, minus where it lies in img1. Defined for hidden points too; zero for points behind camera 2.
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


def render_pair(config: SceneConfig, seed: int, index: int) -> ScenePair:
    """Pair `index` of the endless sequence `seed`, both non-negative; same arguments, same bits."""
    return render(config, sample_scene(config, seed, index))


class ScenePairs:
    """Map-style dataset of rendered pairs; holds no state, so it may be pickled, shuffled and split freely.

    Items are dictionaries of "image1" and "image2", uint8 (H, W, 3); with `geometry` also of "depth1",
    "depth2", "intrinsics", "pose", "flow" and "covisible" as in `ScenePair`.

    Raises:
        DataError: `config.textures` is not a folder with images.
    """

    def __init__(self, config: SceneConfig, seed: int = 0, length: int = 1_000_000, geometry: bool = False) -> None:
        self.config, self.seed, self.length, self.geometry = config, seed, length, geometry
        if config.textures is not None:
            _texture_files(config.textures)  # fail here rather than in a worker

    def __len__(self) -> int:
        return self.length

    def changed(self, **settings: Any) -> "ScenePairs":
        """The same sequence with another displacement or texture_scale.

        Raises:
            RecipeError: another setting, which would change the images' shape or whether there are any.
        """
        if fixed := sorted(settings.keys() - {"displacement", "texture_scale"}):
            raise RecipeError(f"Scenes keep their {', '.join(fixed)}; change displacement or texture_scale only.")
        return ScenePairs(replace(self.config, **settings), self.seed, self.length, self.geometry)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(f"Pair {index} is outside of the {self.length} pairs.")
        scene = sample_scene(self.config, self.seed, index)
        if not self.geometry:
            images, _ = _render_views(self.config, scene)
            return {"image1": images[0], "image2": images[1]}
        pair = vars(render(self.config, scene)).copy()
        return {"image1": pair.pop("img1"), "image2": pair.pop("img2"), **pair}


class SceneImages:
    """Map-style dataset of single views of the scenes of `pairs`: "image", uint8 (H, W, 3)."""

    def __init__(self, pairs: ScenePairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def changed(self, **settings: Any) -> "SceneImages":
        """See `ScenePairs.changed`."""
        return SceneImages(self.pairs.changed(**settings))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        config = self.pairs.config
        scene = sample_scene(config, self.pairs.seed, index)
        images, _ = _render_views(config, replace(scene, cameras=scene.cameras[:1]))
        return {"image": images[0]}


# --- Drawing a scene ----------------------------------------------------------------------------------------


def sample_scene(config: SceneConfig, seed: int, index: int) -> Scene:
    """All random choices of pair `index` of the sequence `seed`.

    Raises:
        DataError: `config.textures` is not a folder with images.
    """
    # Philox is a function of its key alone, so samples are independent without a stream to wind forward.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    focal = 0.5 / math.tan(rng.uniform(0.4, 0.65))  # 46 to 74 degrees of horizontal field of view
    room = rng.uniform((2.5, 1.6, 3.5), (5.0, 2.8, 6.0))
    camera = _first_camera(rng, room)
    solids = _sample_solids(rng, room, camera, focal)
    motion, depth = _sample_motion(rng, config, focal, camera, solids)
    light = rng.uniform((-1.0, -1.0, -1.0), (1.0, -0.3, 0.2))  # from above and rather from behind the camera
    shortest, longest = np.log(config.texture_scale)
    wavelengths = np.exp(rng.uniform(shortest, longest, _SURFACES)) * depth / focal
    return Scene(
        focal=focal,
        cameras=np.stack([camera, motion @ camera]).astype(np.float32),
        light=(light / np.linalg.norm(light)).astype(np.float32),
        lattice=rng.random((2, _NOISE_CELLS, _NOISE_CELLS), dtype=np.float32) * 2 - 1,
        solids=solids,
        surfaces=_sample_surfaces(rng, wavelengths, config.textures),
    )


def _first_camera(rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
    """(4, 4) world to camera: in the rear half of the room, looking more or less at its far end."""
    center = room * rng.uniform((-0.5, -0.4, -0.8), (0.5, 0.3, -0.3))
    yaw, pitch, roll = rng.uniform((-0.6, -0.35, -0.15), (0.6, 0.1, 0.15))
    turn = _rotation(0, yaw, 0) @ _rotation(pitch, 0, 0) @ _rotation(0, 0, roll)  # camera to world
    return _rigid(turn.T, -turn.T @ center)


def _sample_solids(rng: np.random.Generator, room: np.ndarray, camera: np.ndarray, focal: float) -> Solids:
    """The room and objects that camera 1 sees at various places, depths and apparent sizes."""
    count = _BOXES + _BALLS
    turn, eye = camera[:3, :3].T, -camera[:3, :3].T @ camera[:3, 3]
    rays = rng.uniform(-0.45, 0.45, (count, 2)) / focal
    rays = np.column_stack([rays, np.ones(count)]) @ turn.T  # in the world, of unit z-depth
    wall = ((np.copysign(room, rays) - eye) / rays).min(1)
    depth = wall * rng.uniform(0.35, 0.9, count)
    radius = depth / focal * rng.uniform(0.08, 0.22, count)  # in image widths, then in scene units
    centers = eye + rays * depth[:, None]
    half_sizes = radius[:, None] * rng.uniform(0.5, 1.2, (count, 3))
    flat = rng.random(count) < 0.3
    half_sizes[flat, 2] = 0.03  # boards
    half_sizes[_BOXES:] = radius[_BOXES:, None]

    # Boxes: upright, most of them on the floor, or tumbled in the air. Balls: a pole faces camera 1, because
    # their texture map is singular at the other one.
    tumbled, grounded = rng.random((2, count)) < ((0.35,), (0.65,))
    turns = _random_rotations(rng, count, np.where(tumbled, 1.0, 0.0))
    turns[_BOXES:] = _facing(eye - centers[_BOXES:])
    grounded[:_BOXES] &= ~tumbled[:_BOXES]
    centers[grounded, 1] = room[1] - half_sizes[grounded, 1]
    used = np.concatenate(
        [np.arange(_BOXES) < rng.integers(3, _BOXES + 1), np.arange(_BALLS) < rng.integers(1, _BALLS + 1)]
    )
    used &= np.linalg.norm(centers - eye, axis=1) > np.linalg.norm(half_sizes, axis=1) + 2 * _CLEARANCE
    return Solids(
        centers=np.concatenate([np.zeros((1, 3)), centers]).astype(np.float32),
        rotations=np.concatenate([np.eye(3)[None], turns]).astype(np.float32),
        half_sizes=np.concatenate([room[None], half_sizes]).astype(np.float32),
        used=np.concatenate([[True], used]),
    )


def _sample_motion(
    rng: np.random.Generator, config: SceneConfig, focal: float, camera: np.ndarray, solids: Solids
) -> tuple[np.ndarray, float]:
    """(4, 4) from camera-1 to camera-2 coordinates, and the median depth of view 1.

    A motion is a direction of translation and a rotation in proportion; its length follows from the wished
    displacement, measured on a grid of probe rays. The first motion with enough overlap is taken, else the
    one with most.
    """
    wish = rng.uniform(*config.displacement)
    aspect = config.height / config.width
    ticks = (np.arange(_PROBE_SIDE) + 0.5) / _PROBE_SIDE - 0.5
    x, y = (grid.ravel() / focal for grid in np.meshgrid(ticks, ticks * aspect))
    rays = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    depths = _first_hit(solids, camera[None].astype(np.float32), rays[:, None]).depth[0]
    points = rays * depths
    depth = _median(depths)

    angle, forward, follow = rng.uniform((0, -0.4, -0.2), (2 * math.pi, 0.4, 0.7), (_MOTIONS, 3)).T
    shifts = np.stack([np.cos(angle), 0.6 * np.sin(angle), forward], axis=1)
    # `follow` of the rotation that would hold the middle of view 1 in place, and a bit of anything else.
    turns = np.stack([shifts[:, 1] * follow, -shifts[:, 0] * follow, np.zeros(_MOTIONS)], axis=1)
    turns += rng.uniform((-0.15, -0.15, -0.5), (0.15, 0.15, 0.5), (_MOTIONS, 3))

    best, most = _motion(0.05 * turns[0], 0.05 * depth * shifts[0]), 0.0
    for shift, turn in zip(shifts, turns, strict=True):
        length = wish
        for _ in range(3):  # displacement is nearly linear in the length, so this converges fast
            motion = _motion(length * turn, length * depth * shift)
            targets, inside = _project(_move(motion, points), focal, aspect)
            if 2 * inside.sum() < inside.size:
                break
            x, y = (targets - rays[:2]) * focal
            length *= wish / max(_median(np.hypot(x, y)[inside]), 1e-6)
        overlap = _overlap(solids, motion, camera, points, focal, aspect)
        if overlap > most:
            best, most = motion, overlap
        if overlap >= _MIN_OVERLAP:
            break
    return best, depth


def _overlap(
    solids: Solids, motion: np.ndarray, camera: np.ndarray, points: np.ndarray, focal: float, aspect: float
) -> float:
    """Share of `points` (3, N) of view 1 that view 2 sees as well; 0 where camera 2 can't stand."""
    second = motion @ camera
    eye = -second[:3, :3].T @ second[:3, 3]
    if np.any(np.abs(eye) > solids.half_sizes[0] - _CLEARANCE):
        return 0.0
    away = np.linalg.norm(solids.centers - eye, axis=1) - np.linalg.norm(solids.half_sizes, axis=1)
    if np.any(away[1:][solids.used[1:]] < _CLEARANCE):
        return 0.0
    moved = _move(motion, points).astype(np.float32)
    return float(_visible(solids, second.astype(np.float32), moved, focal, aspect).mean())


def _sample_surfaces(rng: np.random.Generator, wavelengths: np.ndarray, textures: str | None) -> Surfaces:
    """Textures of the given dominant `wavelengths` (T,) in scene units, in colors that all share."""
    count = len(wavelengths)
    turn = rng.uniform(0, 2 * math.pi, count)
    cos, sin = np.cos(turn), np.sin(turn)
    stretch = np.exp(rng.uniform(-0.35, 0.35, count))
    density = 2 / wavelengths  # two cells of value noise make about one wave
    offset = rng.uniform(0, _NOISE_CELLS, (count, 2))
    across, along = density * stretch, density / stretch
    cells = np.stack([cos * across, -sin * across, offset[:, 0], sin * along, cos * along, offset[:, 1]], axis=1)

    frequency = rng.uniform(0.15, 0.5, count)
    stripes = rng.random(count) < 0.5
    waves = np.stack(
        [
            frequency,
            np.where(stripes, 0.0, frequency * rng.uniform(0.6, 1.6, count)),
            np.where(stripes, 0.25, rng.random(count)),
            rng.uniform(0.0, 0.5, count),
            np.exp(rng.uniform(-0.5, 2.0, count)),
        ],
        axis=1,
    )
    noise = np.stack([rng.uniform(0.5, 0.9, count), np.exp(rng.uniform(0.5, 2.0, count))], axis=1)

    # One palette for all surfaces: color alone then doesn't tell which of them a patch lies on. Its
    # brightness spreads evenly, so that any two of its colors make a visible contrast.
    palette = np.linspace(0.12, 0.85, 5)[:, None] + rng.uniform(-0.3, 0.3, (5, 3))
    picks = palette[rng.permuted(np.tile(np.arange(5), (count, 1)), axis=1)]  # T, 5, 3
    shares = rng.uniform((0.45, 0.2, 0.0), (0.75, 0.5, 0.5), (count, 3))[:, :, None]
    colors = np.stack(
        [
            0.3 * (picks[:, 0] + picks[:, 1]) + 0.1 * (picks[:, 2] + picks[:, 3]) + 0.1,
            shares[:, 0] * (picks[:, 0] - picks[:, 1]),
            shares[:, 1] * (picks[:, 2] - picks[:, 3]) + rng.uniform(-0.15, 0.15, (count, 3)),
            shares[:, 2] * (picks[:, 4] - picks[:, 0]) * (rng.random((count, 1)) < 0.7),
        ],
        axis=1,
    )
    image = np.full(count, -1)
    if textures is not None:
        chosen = rng.integers(len(_texture_files(textures)), size=count)
        image = np.where(rng.random(count) < 0.5, chosen, -1)
    f32 = np.float32
    return Surfaces(cells.astype(f32), waves.astype(f32), noise.astype(f32), colors.astype(f32), image.astype(np.int32))


# --- Rendering ----------------------------------------------------------------------------------------------


def render(config: SceneConfig, scene: Scene) -> ScenePair:
    """Both views of `scene` and their geometry, by float32 array mathematics without randomness."""
    (img1, img2), (depth1, depth2) = _render_views(config, scene)
    focal, aspect = scene.focal, config.height / config.width
    intrinsics = np.eye(3, dtype=np.float32)
    intrinsics[0, 0] = intrinsics[1, 1] = focal * config.width
    intrinsics[:2, 2] = config.width / 2, config.height / 2
    first, second = scene.cameras.astype(np.float64)
    pose = (second @ np.linalg.inv(first)).astype(np.float32)

    rays = _pixel_rays(config, focal, 1)
    points = _move(pose, rays * depth1.reshape(-1))
    seen = _visible(scene.solids, scene.cameras[1], points, focal, aspect)
    targets, _ = _project(points, focal, aspect)
    flow = np.where(points[2] > _NEAR, (targets - rays[:2]) * intrinsics[0, 0], np.float32(0))
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


def _render_views(config: SceneConfig, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All of the scene's V views at once: uint8 images (V, H, W, 3) and float32 z-depths (V, H, W)."""
    height, width, fine = config.height, config.width, config.supersample
    views = len(scene.cameras)
    rays = _pixel_rays(config, scene.focal, fine)
    pixel = 1 / (scene.focal * width * fine)  # width of a ray's footprint at unit depth
    table = _lattice_table(scene.lattice)
    colors, depth = np.empty((3, views, rays.shape[1]), np.float32), np.empty((views, rays.shape[1]), np.float32)
    for start in range(0, rays.shape[1], _BAND):
        band = slice(start, start + _BAND)
        hit = _first_hit(scene.solids, scene.cameras, rays[:, None, band])
        colors[:, :, band] = _shade(config, scene, table, rays[:, None, band], hit, pixel)
        depth[:, band] = hit.depth
    if fine > 1:
        colors = colors.reshape(3, views, height, fine, width, fine).mean((3, 5))
        # Depth is of the pixel centers, through which no finer ray passes if there is an even number of them.
        depth = _first_hit(scene.solids, scene.cameras, _pixel_rays(config, scene.focal, 1)[:, None]).depth
    images = (colors * 255 + 0.5).astype(np.uint8).reshape(3, views, height, width).transpose(1, 2, 3, 0)
    return np.ascontiguousarray(images), depth.reshape(views, height, width)


def _shade(
    config: SceneConfig, scene: Scene, table: np.ndarray, rays: np.ndarray, hit: "_Hit", pixel: float
) -> np.ndarray:
    """RGB (3, V, N) in 0..1 of what the camera `rays` (3, 1, N) of V views `hit`.

    `table` is of `_lattice_table`; `pixel` is the width of a ray's footprint at unit depth.
    """
    solid = hit.solid
    points = hit.eye + hit.directions * hit.depth
    points -= np.take(scene.solids.centers.T, solid, axis=1)
    axes = np.take(scene.solids.rotations.reshape(-1, 9).T, solid, axis=1)
    axes = axes.reshape(3, 3, *solid.shape)  # world, local, V, N
    local = np.einsum("ivn,ijvn->jvn", points, axes)
    half = np.take(scene.solids.half_sizes.T, solid, axis=1)
    room, ball = solid == 0, solid > _BOXES

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
    return np.clip(_texture(config, scene, table, surface, u, v, footprint) * (0.72 + 0.36 * lit), 0, 1)


def _texture(
    config: SceneConfig,
    scene: Scene,
    table: np.ndarray,
    surface: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    footprint: np.ndarray,
) -> np.ndarray:
    """RGB (3, V, N) of the points (u, v) (V, N) in scene units on `surface` (V, N).

    Detail finer than the `footprint` (V, N) of a ray, in scene units, fades out: it would alias, and
    differently in the two views.
    """
    surfaces = scene.surfaces
    uu, uv, u0, vu, vv, v0 = np.take(surfaces.cells.T, surface, axis=1)
    blur = footprint * np.sqrt(np.linalg.det(surfaces.cells.reshape(-1, 2, 3)[:, :, :2]))[surface]  # in cells
    u, v = uu * u + uv * v + u0, vu * u + vv * v + v0

    falloff, edge = np.take(surfaces.noise.T, surface, axis=1)
    cos, sin = math.cos(_OCTAVE_TURN) * _OCTAVE_RATIO, math.sin(_OCTAVE_TURN) * _OCTAVE_RATIO
    noise = _lattice_noise(table, u, v) * np.clip(2 - 2 * blur, 0, 1)
    x, y, width, weight = u, v, blur, 1
    for _ in range(1, _OCTAVES):
        x, y, width, weight = cos * x - sin * y, sin * x + cos * y, width * _OCTAVE_RATIO, weight * falloff
        noise += _lattice_noise(table, x, y) * (weight * np.clip(2 - 2 * width, 0, 1))
    noise[0] *= edge
    noise[0] /= np.sqrt(1 + noise[0] * noise[0])  # edges of blobs

    a, b, c, bend, hard = np.take(surfaces.waves.T, surface, axis=1)
    bend = bend * noise[1]
    wave = np.sin(2 * np.pi * (a * u + bend)) * np.sin(2 * np.pi * (b * v + c + bend))
    wave *= hard * np.clip(2 - 2 * blur, 0, 1)
    wave /= np.sqrt(1 + wave * wave)

    mix = np.take(surfaces.colors.reshape(-1, 12).T, surface, axis=1).reshape(4, 3, *surface.shape)
    colors = mix[0]
    for share, feature in zip(mix[1:], (*noise, wave), strict=True):
        colors += share * feature
    if config.textures is not None:
        _put_images(config.textures, surfaces.image[surface], u, v, blur, colors)
    return np.clip(colors, 0.03, 1)


def _lattice_table(lattice: np.ndarray) -> np.ndarray:
    """(8, 64 * 64): per cell and channel the factors of 1, x, y and xy in bilinear interpolation."""
    right, low = np.roll(lattice, -1, axis=2), np.roll(lattice, -1, axis=1)
    twist = lattice - right - low + np.roll(right, -1, axis=1)
    return np.concatenate([lattice, right - lattice, low - lattice, twist]).reshape(8, -1)


def _lattice_noise(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2, V, N) smooth noise in -1..1 at `x`, `y` (V, N) in cells."""
    column, row = np.floor(x), np.floor(y)
    x, y = x - column, y - row
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)  # smoothstep: no creases at the cells' borders
    wrap = _NOISE_CELLS - 1
    cell = (row.astype(np.intp) & wrap) * _NOISE_CELLS + (column.astype(np.intp) & wrap)
    corner, across, down, both = np.take(table, cell, axis=1).reshape(4, 2, *cell.shape)
    both *= y
    across += both
    across *= x
    down *= y
    corner += across
    corner += down
    return corner


class _Hit(NamedTuple):
    """Where rays of V views meet the scene first."""

    eye: np.ndarray  # 3, V, 1: where each camera stands, in world coordinates
    directions: np.ndarray  # 3, V, N: the rays in the world, of unit z-depth
    depth: np.ndarray  # V, N: z-depth
    solid: np.ndarray  # V, N: row in the solids


def _first_hit(solids: Solids, cameras: np.ndarray, rays: np.ndarray) -> _Hit:
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
        (used[(used > 0) & (used <= _BOXES)], _hit_boxes),
        (used[used > _BOXES], _hit_balls),
    ):
        for row, hit in zip(rows, hit_all(solids, rows, eye, directions), strict=True):
            np.copyto(solid, row, where=hit < depth)
            np.minimum(depth, hit, out=depth)
    return _Hit(eye, directions, depth, solid)


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


def _visible(solids: Solids, camera: np.ndarray, points: np.ndarray, focal: float, aspect: float) -> np.ndarray:
    """Whether `camera` sees the surface points (3, N), given in its coordinates: bool (N,).

    Exact: casts a ray at each instead of looking it up in a rendered depth map.
    """
    targets, inside = _project(points, focal, aspect)
    rays = np.concatenate([targets, np.ones_like(targets[:1])])
    depth = _first_hit(solids, camera[None], rays[:, None]).depth[0]
    return inside & (np.abs(depth - points[2]) < 1e-3 * depth)


def _project(points: np.ndarray, focal: float, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z (2, N) of camera points (3, N), and whether they lie in the image: bool (N,)."""
    ahead = points[2] > _NEAR
    targets = points[:2] / np.where(ahead, points[2], 1)
    edge = 0.5 / focal
    return targets, ahead & (np.abs(targets[0]) < edge) & (np.abs(targets[1]) < edge * aspect)


def _pixel_rays(config: SceneConfig, focal: float, fine: int) -> np.ndarray:
    """Camera rays of unit z through the centers of the (finer) pixels: float32 (3, H * W * fine^2)."""
    x = ((np.arange(config.width * fine) + 0.5) / fine - config.width / 2) / (focal * config.width)
    y = ((np.arange(config.height * fine) + 0.5) / fine - config.height / 2) / (focal * config.width)
    rays = np.ones((3, len(y), len(x)), np.float32)
    rays[0], rays[1] = x, y[:, None]
    return rays.reshape(3, -1)


# --- The user's textures ------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _texture_files(folder: str) -> tuple[Path, ...]:
    """The images under `folder`, in an order that doesn't depend on the file system.

    Raises:
        DataError: the folder doesn't exist or has none.
    """
    named = (path for path in Path(folder).rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    files = tuple(sorted(path for path in named if path.is_file()))
    if not files:
        suffixes = ", ".join(sorted(_IMAGE_SUFFIXES))
        raise DataError(
            f"The textures folder {folder!r} has no readable images or doesn't exist. "
            f"Name a folder with image files ({suffixes}), or leave textures unset."
        )
    return files


@lru_cache(maxsize=256)
def _texture_levels(path: Path) -> tuple[np.ndarray, ...]:
    """The image at `path` as squares of 256, 128 ... 2 texels a side: uint8 (side, side, 3) each.

    Raises:
        DataError: it can't be read.
    """
    from PIL import Image  # only users' textures need it

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The texture {path} can't be read as an image. Remove it or save it anew.") from error
    sides = (_IMAGE_SIDE >> level for level in range(_IMAGE_LEVELS))
    return tuple(np.asarray(image.resize((side, side), Image.Resampling.BOX)) for side in sides)


def _put_images(
    folder: str, image: np.ndarray, u: np.ndarray, v: np.ndarray, blur: np.ndarray, colors: np.ndarray
) -> None:
    """Overwrites `colors` (3, V, N) where `image` (V, N) isn't -1 by that image of `folder`.

    `u`, `v` (V, N) are in cells. An image spans 8 of them, i.e. about 4 of the dominant wavelengths, and
    repeats mirrored, without a seam. It is read between texels, at the level whose texels are about as large
    as `blur` (V, N) in cells.
    """
    files = _texture_files(folder)
    level = np.clip(np.log2(blur * (_IMAGE_SIDE / 8)) + 0.5, 0, _IMAGE_LEVELS - 1).astype(np.int32)
    fold_u, fold_v = (1 - np.abs(1 - (coordinate / 8) % 2) for coordinate in (u, v))  # 0..1
    for index in np.unique(image[image >= 0]):
        levels = _texture_levels(files[index])
        for depth in np.unique(level[image == index]):
            where = (image == index) & (level == depth)
            colors[:, where] = _bilinear(levels[depth], fold_u[where], fold_v[where])


def _bilinear(texels: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """RGB (3, N) in 0..1 of a square uint8 image (side, side, 3) at `u`, `v` (N,) in 0..1."""
    last = len(texels) - 1
    x, y = u * last, v * last
    left, top = np.minimum(x.astype(np.int32), last - 1), np.minimum(y.astype(np.int32), last - 1)
    right, low = x - left, y - top
    upper = texels[top, left].T * (1 - right) + texels[top, left + 1].T * right
    lower = texels[top + 1, left].T * (1 - right) + texels[top + 1, left + 1].T * right
    return (upper * (1 - low) + lower * low) / 255


# --- Rigid motions ------------------------------------------------------------------------------------------


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) rotation by the vector (x, y, z): around its direction, by its length in radians (Rodrigues)."""
    angle = math.sqrt(x * x + y * y + z * z)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=np.float64)
    first = math.sin(angle) / angle if angle > 1e-9 else 1.0
    second = (1 - math.cos(angle)) / angle**2 if angle > 1e-9 else 0.5
    return np.eye(3) + first * cross + second * (cross @ cross)


def _rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4) matrix of X -> rotation @ X + translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def _motion(turn: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(4, 4) to the coordinates of a camera at `center` (3,), turned by the rotation vector `turn` (3,)."""
    rotation = _rotation(*turn.tolist()).T
    return _rigid(rotation, -rotation @ center)


def _move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(3, N) `points` under the rigid `matrix` (4, 4)."""
    return matrix[:3, :3] @ points + matrix[:3, 3:]


def _median(values: np.ndarray) -> float:
    """The upper median; several times faster than `np.median` on a few values."""
    return float(np.sort(values)[len(values) // 2])


def _random_rotations(rng: np.random.Generator, count: int, tilt: np.ndarray) -> np.ndarray:
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


def _facing(directions: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations whose z axes point along `directions` (N, 3), which are not vertical."""
    z = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    flat = np.hypot(z[:, 0], z[:, 2])
    cos, sin = z[:, 2] / flat, z[:, 0] / flat
    x = np.stack([cos, np.zeros_like(cos), -sin], axis=1)
    y = np.stack([-z[:, 1] * sin, flat, -z[:, 1] * cos], axis=1)
    return np.stack([x, y, z], axis=2)
