"""Drawing scenes as batches in torch, on the device that trains: as many a second as it renders.

What is drawn, and with which chances, is what `scenes.draw` draws, see there for the reasons; the random numbers are
others, so the scenes of a (seed, index) are others too. Nothing here waits for the device.

Shapes: B scenes, M motions, N probe rays; S solids, T textures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.scenes.config import SceneConfig
from zoo.scenes.draw import CLEARANCE, MIN_OVERLAP, MOTIONS, PROBE_SIDE, SHRINKING
from zoo.scenes.photos import texture_files
from zoo.scenes.rays import NEAR
from zoo.scenes.scene import BALLS, BOXES, NOISE_CELLS, SURFACES
from zoo.scenes.torch.random import Draws
from zoo.scenes.torch.render import SceneBatch, first_hit, seen_points


@torch.no_grad()
def draw_scenes(
    config: SceneConfig,
    seed: int,
    index: Tensor,
    displacement: Tensor | None = None,
    texture_scale: Tensor | None = None,
) -> SceneBatch:
    """The scenes `index` (B,), int64, of the sequence `seed`, on the device of `index`.

    displacement, texture_scale: ranges (B, 2) instead of the configuration's, each scene its own.
    """
    draws = Draws(seed, index)
    device = index.device
    if displacement is None:
        displacement = _same(config.displacement, index)
    if texture_scale is None:
        texture_scale = _same(config.texture_scale, index)
    focal = 0.5 / draws.uniform(0.4, 0.65).tan()
    room = draws.between((2.5, 5.0), (1.6, 2.8), (3.5, 6.0))
    camera = _first_camera(draws, room)
    light = draws.between((-1.0, 1.0), (-1.0, -0.3), (-1.0, 0.2))
    lattice = draws.uniform(-1.0, 1.0, 2, NOISE_CELLS, NOISE_CELLS)
    centers, rotations, half_sizes, used = _sample_solids(draws, room, camera, focal)
    nothing = torch.zeros(len(index), SURFACES, 0, device=device)
    scenes = SceneBatch(
        focal=focal,
        cameras=camera[:, None],
        light=light / light.norm(dim=1, keepdim=True),
        lattice=lattice,
        centers=centers,
        rotations=rotations,
        half_sizes=half_sizes,
        used=used,
        cells=nothing,
        waves=nothing,
        noise=nothing,
        colors=nothing,
        image=nothing,
    )
    motion, depth = _sample_motion(draws, config, displacement, scenes)
    shortest, longest = texture_scale.log()[..., None].unbind(1)
    wavelengths = draws.uniform(shortest, longest, SURFACES).exp() * (depth / focal)[:, None]
    surfaces = _sample_surfaces(draws, wavelengths, config.textures)
    return scenes._replace(cameras=torch.stack((camera, motion @ camera), dim=1), **surfaces)


def _same(limits: tuple[float, float], index: Tensor) -> Tensor:
    """The same range for each of a batch: (B, 2)."""
    return torch.stack([torch.full_like(index, limit, dtype=torch.float32) for limit in limits], dim=1)


def _first_camera(draws: Draws, room: Tensor) -> Tensor:
    """(B, 4, 4) world to camera: in the rear half of the room, looking more or less at its far end."""
    center = room * draws.between((-0.5, 0.5), (-0.4, 0.3), (-0.8, -0.3))
    yaw, pitch, roll = draws.between((-0.6, 0.6), (-0.35, 0.1), (-0.15, 0.15)).unbind(1)
    none = torch.zeros_like(yaw)
    axes = ((none, yaw, none), (pitch, none, none), (none, none, roll))
    around_y, around_x, around_z = (_rotation(torch.stack(axis, dim=1)) for axis in axes)
    turn = around_y @ around_x @ around_z  # camera to world
    return _rigid(turn.mT, -(turn.mT @ center[..., None])[..., 0])


def _sample_solids(draws: Draws, room: Tensor, camera: Tensor, focal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centers (B, S, 3), rotations (B, S, 3, 3), half sizes (B, S, 3) and which are used (B, S)."""
    device, batch, count = room.device, len(room), BOXES + BALLS
    ball = torch.arange(count, device=device) >= BOXES
    turn = camera[:, :3, :3].mT
    eye = -(turn @ camera[:, :3, 3:])[..., 0]
    plane = draws.uniform(-0.45, 0.45, count, 2) / focal[:, None, None]
    rays = torch.cat((plane, torch.ones_like(plane[..., :1])), dim=2) @ turn.mT  # in the world, of unit z-depth
    wall = ((torch.copysign(room[:, None], rays) - eye[:, None]) / rays).amin(2)
    depth = wall * draws.uniform(0.35, 0.9, count)
    radius = depth / focal[:, None] * draws.uniform(0.08, 0.22, count)  # in image widths, then in scene units
    centers = eye[:, None] + rays * depth[..., None]
    half_sizes = radius[..., None] * draws.uniform(0.5, 1.2, count, 3)
    flat = draws.unit(count) < 0.3
    thin = half_sizes[..., 2].masked_fill(flat, 0.03)  # boards
    half_sizes = torch.cat((half_sizes[..., :2], thin[..., None]), dim=2)
    half_sizes = torch.where(ball[:, None], radius[..., None], half_sizes)

    tumbled, grounded = draws.unit(count) < 0.35, draws.unit(count) < 0.65
    turns = _rotations(draws.normal(count, 4), tumbled)
    turns = torch.where(ball[:, None, None], _facing(eye[:, None] - centers), turns)
    grounded = grounded & (ball | ~tumbled)
    height = torch.where(grounded, room[:, 1:2] - half_sizes[..., 1], centers[..., 1])
    centers = torch.stack((centers[..., 0], height, centers[..., 2]), dim=2)
    boxes, balls = (low + (draws.unit(1) * (high - low + 1)).floor() for low, high in ((3, BOXES), (1, BALLS)))
    slot = torch.arange(count, device=device)
    used = torch.where(ball, slot - BOXES < balls, slot < boxes)
    away = (centers - eye[:, None]).norm(dim=2)
    used = used & (away > half_sizes.norm(dim=2) + 2 * CLEARANCE)
    origin = torch.zeros_like(room)[:, None]
    upright = torch.eye(3, device=device).expand(batch, 1, 3, 3)
    return (
        torch.cat((origin, centers), dim=1),
        torch.cat((upright, turns), dim=1),
        torch.cat((room[:, None], half_sizes), dim=1),
        torch.cat((torch.ones_like(used[:, :1]), used), dim=1),
    )


def _sample_motion(
    draws: Draws, config: SceneConfig, displacement: Tensor, scenes: SceneBatch
) -> tuple[Tensor, Tensor]:
    """(B, 4, 4) from camera-1 to camera-2 coordinates, and the median depth (B,) of view 1.

    All motions are tried at once; the first with enough overlap is taken, else the one with most.
    """
    device, batch, aspect = displacement.device, len(displacement), config.height / config.width
    wish = draws.uniform(displacement[:, 0], displacement[:, 1])
    ticks = (torch.arange(PROBE_SIDE, device=device) + 0.5) / PROBE_SIDE - 0.5
    y, x = torch.meshgrid(ticks * aspect, ticks, indexing="ij")
    plane = torch.stack((x.flatten(), y.flatten())) / scenes.focal[:, None, None]
    rays = torch.cat((plane, torch.ones_like(plane[:, :1])), dim=1)  # B, 3, N
    depths = first_hit(scenes, rays).depth
    points = rays * depths[:, None]
    depth = depths.sort(dim=1).values[:, depths.shape[1] // 2]

    ranges = (0.0, 2 * math.pi), (-0.4, 0.4), (-0.2, 0.7)
    angle, forward, follow = draws.between(*ranges, count=MOTIONS).unbind(2)
    shifts = torch.stack((angle.cos(), 0.6 * angle.sin(), forward), dim=2)
    turns = torch.stack((shifts[..., 1] * follow, -shifts[..., 0] * follow, torch.zeros_like(follow)), dim=2)
    turns = turns + draws.between((-0.15, 0.15), (-0.15, 0.15), (-0.5, 0.5), count=MOTIONS)
    wishes = wish[:, None].expand(batch, MOTIONS)
    if config.rectified:
        shifts = torch.eye(3, device=device)[0].expand(batch, MOTIONS, 3)
        turns = torch.zeros_like(turns)
        wishes = wishes * SHRINKING ** torch.arange(MOTIONS, device=device)

    far = shifts * depth[:, None, None]
    length = wishes
    motion = _motion(length[..., None] * turns, length[..., None] * far)
    edge = 0.5 / scenes.focal[:, None, None]
    for _ in range(3):  # displacement is nearly linear in the length, so this converges fast
        motion = _motion(length[..., None] * turns, length[..., None] * far)
        moved = motion[..., :3, :3] @ points[:, None] + motion[..., :3, 3:]  # B, M, 3, N
        ahead = moved[:, :, 2] > NEAR
        targets = moved[:, :, :2] / torch.where(ahead, moved[:, :, 2], 1)[:, :, None]
        inside = ahead & (targets[:, :, 0].abs() < edge) & (targets[:, :, 1].abs() < edge * aspect)
        found = ((targets - rays[:, None, :2]) * scenes.focal[:, None, None, None]).norm(dim=2)
        count = inside.sum(2)
        middle = found.masked_fill(~inside, torch.inf).sort(dim=2).values.gather(2, (count // 2)[..., None])[..., 0]
        length = torch.where(2 * count < inside.shape[2], length, length * wishes / middle.clamp(min=1e-6))

    overlap = _overlap(config, scenes, motion, points)
    tries = torch.arange(MOTIONS, device=device)
    best = torch.where(overlap >= MIN_OVERLAP, 1 + MOTIONS - tries, overlap).argmax(1)
    chosen = motion[torch.arange(batch, device=device), best]
    last_resort = _motion(0.05 * turns[:, 0], 0.05 * far[:, 0])
    return torch.where((overlap.amax(1) > 0)[:, None, None], chosen, last_resort), depth


def _overlap(config: SceneConfig, scenes: SceneBatch, motion: Tensor, points: Tensor) -> Tensor:
    """(B, M): the share of `points` (B, 3, N) of view 1 that each view 2 sees as well; 0 where it can't stand."""
    second = motion @ scenes.cameras  # B, M, 4, 4
    eye = -(second[..., :3, :3].mT @ second[..., :3, 3:])[..., 0]
    in_room = (eye.abs() <= scenes.half_sizes[:, :1] - CLEARANCE).all(2)
    away = (scenes.centers[:, None] - eye[:, :, None]).norm(dim=3) - scenes.half_sizes.norm(dim=2)[:, None]
    free = ((away >= CLEARANCE) | ~scenes.used[:, None])[..., 1:].all(2)
    count = motion.shape[1]
    moved = motion[..., :3, :3] @ points[:, None] + motion[..., :3, 3:]
    each = SceneBatch(*(part.repeat_interleave(count, dim=0) for part in scenes))
    each = each._replace(cameras=second.flatten(0, 1)[:, None])
    _, seen = seen_points(each, moved.flatten(0, 1), config)
    return seen.float().mean(1).unflatten(0, (-1, count)) * (in_room & free)


def _sample_surfaces(draws: Draws, wavelengths: Tensor, textures: str | None) -> dict[str, Tensor]:
    """Textures of the given dominant `wavelengths` (B, T) in scene units, in colors that all share."""
    device, count = wavelengths.device, SURFACES
    turn = draws.uniform(0.0, 2 * math.pi, count)
    cos, sin = turn.cos(), turn.sin()
    stretch = draws.uniform(-0.35, 0.35, count).exp()
    density = 2 / wavelengths  # two cells of value noise make about one wave
    offset = draws.uniform(0.0, NOISE_CELLS, count, 2)
    across, along = density * stretch, density / stretch
    cells = (cos * across, -sin * across, offset[..., 0], sin * along, cos * along, offset[..., 1])

    frequency = draws.uniform(0.15, 0.5, count)
    stripes = draws.unit(count) < 0.5
    waves = (
        frequency,
        (frequency * draws.uniform(0.6, 1.6, count)).masked_fill(stripes, 0.0),
        draws.unit(count).masked_fill(stripes, 0.25),
        draws.uniform(0.0, 0.5, count),
        draws.uniform(-0.5, 2.0, count).exp(),
    )
    noise = (draws.uniform(0.5, 0.9, count), draws.uniform(0.5, 2.0, count).exp())

    ramp = torch.linspace(0.12, 0.85, 5, device=device)[:, None]
    palette = ramp + draws.uniform(-0.3, 0.3, 5, 3)  # B, 5, 3
    order = draws.unit(count, 5).argsort(dim=2)
    picks = palette[:, None].expand(-1, count, -1, -1).gather(2, order[..., None].expand(-1, -1, -1, 3))
    shares = draws.between((0.45, 0.75), (0.2, 0.5), (0.0, 0.5), count=count)[..., None]  # B, T, 3, 1
    first, second, third, fourth, fifth = picks.unbind(2)
    colors = (
        0.3 * (first + second) + 0.1 * (third + fourth) + 0.1,
        shares[:, :, 0] * (first - second),
        shares[:, :, 1] * (third - fourth) + draws.uniform(-0.15, 0.15, count, 3),
        shares[:, :, 2] * (fifth - first) * (draws.unit(count, 1) < 0.7),
    )
    image = torch.full(wavelengths.shape, -1, device=device)
    if textures is not None:
        chosen = (draws.unit(count) * len(texture_files(textures))).long()
        image = torch.where(draws.unit(count) < 0.5, chosen, -1)
    return dict(
        cells=torch.stack(cells, dim=2),
        waves=torch.stack(waves, dim=2),
        noise=torch.stack(noise, dim=2),
        colors=torch.stack(colors, dim=2),
        image=image,
    )


def _rotation(vector: Tensor) -> Tensor:
    """(..., 3, 3) rotations by vectors (..., 3): around their direction, by their length in radians (Rodrigues)."""
    angle = vector.norm(dim=-1)[..., None, None].clamp(min=1e-9)
    x, y, z = vector.unbind(-1)
    none = torch.zeros_like(x)
    cross = torch.stack((none, -z, y, z, none, -x, -y, x, none), dim=-1).unflatten(-1, (3, 3))
    # sin(angle / 2) keeps 1 - cos(angle) exact for the small angles that motions have
    second = 2 * ((angle / 2).sin() / angle).square()
    return torch.eye(3, device=vector.device) + angle.sin() / angle * cross + second * (cross @ cross)


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """(..., 4, 4) matrices of X -> rotation @ X + translation; of (..., 3, 3) and (..., 3)."""
    upper = torch.cat((rotation, translation[..., None]), dim=-1)
    last = torch.eye(4, device=upper.device)[3:].expand(*upper.shape[:-2], 1, 4)
    return torch.cat((upper, last), dim=-2)


def _motion(turn: Tensor, center: Tensor) -> Tensor:
    """(..., 4, 4) to the coordinates of cameras at `center` (..., 3), turned by the rotation vectors `turn`."""
    rotation = _rotation(turn).mT
    return _rigid(rotation, -(rotation @ center[..., None])[..., 0])


def _rotations(q: Tensor, tumbled: Tensor) -> Tensor:
    """(..., 3, 3) of normally distributed q (..., 4): anything where `tumbled` (...), else around the vertical."""
    w, x, y, z = q.unbind(-1)
    q = torch.stack((w, x * tumbled, y, z * tumbled), dim=-1)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _facing(directions: Tensor) -> Tensor:
    """(..., 3, 3) rotations whose z axes point along `directions` (..., 3), which are not vertical."""
    x, y, z = (directions / directions.norm(dim=-1, keepdim=True)).unbind(-1)
    flat = torch.hypot(x, z)
    cos, sin = z / flat, x / flat
    # columns: the axes x, y, z
    rows = (cos, -y * sin, x, torch.zeros_like(x), flat, y, -sin, -y * cos, z)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
