"""Drawing a scene: all random choices of a pair, as a pure function of (seed, index)."""

import math

import numpy as np

from zoo.scenes.config import SceneConfig
from zoo.scenes.photos import texture_files
from zoo.scenes.rays import first_hit, project, visible
from zoo.scenes.rigid import camera_motion, facing, move_points, random_rotations, rigid_matrix, rotation_matrix
from zoo.scenes.scene import BALLS, BOXES, NOISE_CELLS, SURFACES, Scene, Solids, Surfaces

PROBE_SIDE = 12  # probe rays per image side, which place the second camera
MIN_OVERLAP = 0.65  # least share of co-visible probe rays
MOTIONS = 8  # motions tried for the second camera of a scene
SHRINKING = 0.75  # of a stereo camera's displacement from one motion that is tried to the next
CLEARANCE = 0.3  # scene units that the cameras keep from walls and objects


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
    wavelengths = np.exp(rng.uniform(shortest, longest, SURFACES)) * depth / focal
    return Scene(
        focal=focal,
        cameras=np.stack([camera, motion @ camera]).astype(np.float32),
        light=(light / np.linalg.norm(light)).astype(np.float32),
        lattice=rng.random((2, NOISE_CELLS, NOISE_CELLS), dtype=np.float32) * 2 - 1,
        solids=solids,
        surfaces=_sample_surfaces(rng, wavelengths, config.textures),
    )


def _first_camera(rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
    """(4, 4) world to camera: in the rear half of the room, looking more or less at its far end."""
    center = room * rng.uniform((-0.5, -0.4, -0.8), (0.5, 0.3, -0.3))
    yaw, pitch, roll = rng.uniform((-0.6, -0.35, -0.15), (0.6, 0.1, 0.15))
    turn = rotation_matrix(0, yaw, 0) @ rotation_matrix(pitch, 0, 0) @ rotation_matrix(0, 0, roll)  # camera to world
    return rigid_matrix(turn.T, -turn.T @ center)


def _sample_solids(rng: np.random.Generator, room: np.ndarray, camera: np.ndarray, focal: float) -> Solids:
    """The room and objects that camera 1 sees at various places, depths and apparent sizes."""
    count = BOXES + BALLS
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
    half_sizes[BOXES:] = radius[BOXES:, None]

    # Boxes: upright, most of them on the floor, or tumbled in the air. Balls: a pole faces camera 1, because
    # their texture map is singular at the other one.
    tumbled, grounded = rng.random((2, count)) < ((0.35,), (0.65,))
    turns = random_rotations(rng, count, np.where(tumbled, 1.0, 0.0))
    turns[BOXES:] = facing(eye - centers[BOXES:])
    grounded[:BOXES] &= ~tumbled[:BOXES]
    centers[grounded, 1] = room[1] - half_sizes[grounded, 1]
    used = np.concatenate(
        [np.arange(BOXES) < rng.integers(3, BOXES + 1), np.arange(BALLS) < rng.integers(1, BALLS + 1)]
    )
    used &= np.linalg.norm(centers - eye, axis=1) > np.linalg.norm(half_sizes, axis=1) + 2 * CLEARANCE
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
    one with most. Motions of a stereo camera differ in the displacement alone, which shrinks from one to the next.
    """
    wish = rng.uniform(*config.displacement)
    aspect = config.height / config.width
    ticks = (np.arange(PROBE_SIDE) + 0.5) / PROBE_SIDE - 0.5
    x, y = (grid.ravel() / focal for grid in np.meshgrid(ticks, ticks * aspect))
    rays = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    depths = first_hit(solids, camera[None].astype(np.float32), rays[:, None]).depth[0]
    points = rays * depths
    depth = _median(depths)

    angle, forward, follow = rng.uniform((0, -0.4, -0.2), (2 * math.pi, 0.4, 0.7), (MOTIONS, 3)).T
    shifts = np.stack([np.cos(angle), 0.6 * np.sin(angle), forward], axis=1)
    # `follow` of the rotation that would hold the middle of view 1 in place, and a bit of anything else.
    turns = np.stack([shifts[:, 1] * follow, -shifts[:, 0] * follow, np.zeros(MOTIONS)], axis=1)
    turns += rng.uniform((-0.15, -0.15, -0.5), (0.15, 0.15, 0.5), (MOTIONS, 3))

    wishes = np.full(MOTIONS, wish)
    if config.rectified:
        shifts, turns = np.tile([1.0, 0.0, 0.0], (MOTIONS, 1)), np.zeros((MOTIONS, 3))
        wishes *= SHRINKING ** np.arange(MOTIONS)

    best, most = camera_motion(0.05 * turns[0], 0.05 * depth * shifts[0]), 0.0
    for wish, shift, turn in zip(wishes, shifts, turns, strict=True):
        length = wish
        for _ in range(3):  # displacement is nearly linear in the length, so this converges fast
            motion = camera_motion(length * turn, length * depth * shift)
            targets, inside = project(move_points(motion, points), focal, aspect)
            if 2 * inside.sum() < inside.size:
                break
            x, y = (targets - rays[:2]) * focal
            length *= wish / max(_median(np.hypot(x, y)[inside]), 1e-6)
        overlap = _overlap(solids, motion, camera, points, focal, aspect)
        if overlap > most:
            best, most = motion, overlap
        if overlap >= MIN_OVERLAP:
            break
    return best, depth


def _overlap(
    solids: Solids, motion: np.ndarray, camera: np.ndarray, points: np.ndarray, focal: float, aspect: float
) -> float:
    """Share of `points` (3, N) of view 1 that view 2 sees as well; 0 where camera 2 can't stand."""
    second = motion @ camera
    eye = -second[:3, :3].T @ second[:3, 3]
    if np.any(np.abs(eye) > solids.half_sizes[0] - CLEARANCE):
        return 0.0
    away = np.linalg.norm(solids.centers - eye, axis=1) - np.linalg.norm(solids.half_sizes, axis=1)
    if np.any(away[1:][solids.used[1:]] < CLEARANCE):
        return 0.0
    moved = move_points(motion, points).astype(np.float32)
    return float(visible(solids, second.astype(np.float32), moved, focal, aspect).mean())


def _sample_surfaces(rng: np.random.Generator, wavelengths: np.ndarray, textures: str | None) -> Surfaces:
    """Textures of the given dominant `wavelengths` (T,) in scene units, in colors that all share."""
    count = len(wavelengths)
    turn = rng.uniform(0, 2 * math.pi, count)
    cos, sin = np.cos(turn), np.sin(turn)
    stretch = np.exp(rng.uniform(-0.35, 0.35, count))
    density = 2 / wavelengths  # two cells of value noise make about one wave
    offset = rng.uniform(0, NOISE_CELLS, (count, 2))
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
        chosen = rng.integers(len(texture_files(textures)), size=count)
        image = np.where(rng.random(count) < 0.5, chosen, -1)
    f32 = np.float32
    return Surfaces(cells.astype(f32), waves.astype(f32), noise.astype(f32), colors.astype(f32), image.astype(np.int32))


def _median(values: np.ndarray) -> float:
    """The upper median; several times faster than `np.median` on a few values."""
    return float(np.sort(values)[len(values) // 2])
