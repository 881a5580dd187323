"""The procedural scenes of `scenes`, rendered as batches in torch, on the device that trains.

What is here is the array mathematics of `scenes.render` on a batch of scenes, drawn by numpy (`sample_scene`, about a
millisecond each) or by `zoo.scenes.torch.draw`, on whatever device they lie. Both give the same picture and geometry up
to float rounding, which moves a pixel now and then across an object's edge. On a CPU numpy's is quicker and does the
work. Conventions are those of `scenes`.

Shapes: B scenes, V views, N rays of a view, P = V * N; S solids, T textures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.scenes import render as by_numpy
from zoo.scenes.config import SceneConfig
from zoo.scenes.draw import sample_scene
from zoo.scenes.photos import IMAGE_LEVELS, IMAGE_SIDE, texture_files, texture_levels
from zoo.scenes.rays import NEAR
from zoo.scenes.scene import BOXES, NOISE_CELLS, Scene, Solids, Surfaces
from zoo.scenes.textures import OCTAVE_RATIO, OCTAVE_TURN, OCTAVES

_FAR = 1e30  # times by how much a ray misses it: the depth of what is not hit


class SceneBatch(NamedTuple):
    """Scenes as tensors, the arrays of `Scene` behind a batch dimension; see there for what they are.

    focal (B,), cameras (B, V, 4, 4), light (B, 3), lattice (B, 2, 64, 64); of the solids centers (B, S, 3), rotations
    (B, S, 3, 3), half_sizes (B, S, 3), used (B, S); of the surfaces cells (B, T, 6), waves (B, T, 5), noise (B, T, 2),
    colors (B, T, 4, 3), image (B, T).
    """

    focal: Tensor
    cameras: Tensor
    light: Tensor
    lattice: Tensor
    centers: Tensor
    rotations: Tensor
    half_sizes: Tensor
    used: Tensor
    cells: Tensor
    waves: Tensor
    noise: Tensor
    colors: Tensor
    image: Tensor


class ScenePairBatch(NamedTuple):
    """`ScenePair` for a batch: images uint8 (B, V, 3, H, W); depth (B, V, H, W); flow (B, 2, H, W) from view 1 to
    view 2 in pixels (x, y); covisible (B, H, W) bool; intrinsics (B, 3, 3); pose (B, 4, 4)."""

    images: Tensor
    depth: Tensor
    flow: Tensor
    covisible: Tensor
    intrinsics: Tensor
    pose: Tensor

    @property
    def disparity(self) -> Tensor:
        """(B, H, W) in pixels, of rectified pairs; see `ScenePair.disparity`."""
        return (-self.pose[:, 0, 3] * self.intrinsics[:, 0, 0])[:, None, None] / self.depth[:, 0]

    @property
    def points1(self) -> Tensor:
        """(B, H, W, 3): what view 1 shows, in camera-1 coordinates."""
        return self._rays() * self.depth[:, 0, ..., None]

    @property
    def points2(self) -> Tensor:
        """(B, H, W, 3): what view 2 shows, in camera-1 coordinates too."""
        points = self._rays() * self.depth[:, 1, ..., None]
        return (points - self.pose[:, None, None, :3, 3]) @ self.pose[:, None, :3, :3]

    def _rays(self) -> Tensor:
        """Camera rays of unit z through the pixel centers: (B, H, W, 3)."""
        height, width = self.depth.shape[-2:]
        y, x = (torch.arange(side, device=self.depth.device) + 0.5 for side in (height, width))
        plane = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        plane = (plane - self.intrinsics[:, None, None, :2, 2]) / self.intrinsics[:, None, None, :1, 0]
        return torch.cat((plane, torch.ones_like(plane[..., :1])), dim=-1)

    def truths(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The `zoo.scenes.pairs.TRUTHS` of these names as a batch of them: flow (B, H, W, 2) and so on."""
        whole: dict[str, Callable[[], Tensor]] = dict(
            flow=lambda: self.flow.movedim(1, -1), depth1=lambda: self.depth[:, 0], depth2=lambda: self.depth[:, 1]
        )
        return {name: whole[name]() if name in whole else getattr(self, name) for name in names}


def scene_arrays(scene: Scene) -> dict[str, np.ndarray]:
    """The arrays of a scene under the names of `SceneBatch`: a batch is these, stacked."""
    solids, surfaces = scene.solids._asdict(), scene.surfaces._asdict()
    whole = dict(cameras=scene.cameras, light=scene.light, lattice=scene.lattice)
    return {"focal": np.float32(scene.focal), **whole, **solids, **surfaces}


def stack_scenes(scenes: Iterable[Scene]) -> SceneBatch:
    """Scenes as a batch on the CPU."""
    drawn = [scene_arrays(scene) for scene in scenes]
    return SceneBatch(*(torch.from_numpy(np.stack([arrays[key] for arrays in drawn])) for key in SceneBatch._fields))


def draw_batch(config: SceneConfig, seed: int, indices: range) -> SceneBatch:
    """The scenes `indices` of the sequence `seed`, on the CPU."""
    return stack_scenes(sample_scene(config, seed, index) for index in indices)


# --- Rendering ----------------------------------------------------------------------------------------------


def render(config: SceneConfig, scenes: SceneBatch) -> ScenePairBatch:
    """Two views of each scene and their geometry; on a CPU by numpy's renderer, which is quicker there."""
    if scenes.focal.device.type != "cpu":
        return render_in_torch(config, scenes)
    pairs = [by_numpy.render(config, scene) for scene in _single_scenes(scenes)]
    images = np.stack([(pair.img1, pair.img2) for pair in pairs]).transpose(0, 1, 4, 2, 3)
    depth = np.stack([(pair.depth1, pair.depth2) for pair in pairs])
    flow = np.stack([pair.flow for pair in pairs]).transpose(0, 3, 1, 2)
    rest = (np.stack([getattr(pair, name) for pair in pairs]) for name in ("covisible", "intrinsics", "pose"))
    return ScenePairBatch(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (images, depth, flow, *rest)))


def render_views(config: SceneConfig, scenes: SceneBatch) -> tuple[Tensor, Tensor]:
    """All views of each scene: uint8 images (B, V, 3, H, W) and z-depths (B, V, H, W); where, see `render`."""
    if scenes.focal.device.type != "cpu":
        return render_views_in_torch(config, scenes)
    views = [by_numpy.render_views(config, scene) for scene in _single_scenes(scenes)]
    images, depth = (np.stack(parts) for parts in zip(*views))
    return torch.from_numpy(images).movedim(-1, 2).contiguous(), torch.from_numpy(depth)


def _single_scenes(scenes: SceneBatch) -> Iterator[Scene]:
    """A batch on the CPU as numpy's renderer takes it."""
    for row in zip(*(array.numpy() for array in scenes)):
        focal, cameras, light, lattice, *shapes = row
        yield Scene(float(focal), cameras, light, lattice, Solids(*shapes[:4]), Surfaces(*shapes[4:]))


@torch.no_grad()
def render_in_torch(config: SceneConfig, scenes: SceneBatch) -> ScenePairBatch:
    """`render` on the scenes' own device, whatever it is."""
    return ScenePairBatch(*_render_pairs(config, scenes))


@torch.no_grad()
def render_views_in_torch(config: SceneConfig, scenes: SceneBatch) -> tuple[Tensor, Tensor]:
    """`render_views` on the scenes' own device, whatever it is."""
    return _render_views(config, scenes)


def _render_pairs(config: SceneConfig, scenes: SceneBatch) -> tuple[Tensor, ...]:
    images, depth = _render_views(config, scenes)
    turn = scenes.cameras[:, 1, :3, :3] @ scenes.cameras[:, 0, :3, :3].mT  # camera 1 to camera 2
    shift = scenes.cameras[:, 1, :3, 3] - (turn @ scenes.cameras[:, 0, :3, 3:])[..., 0]
    rays = _pixel_rays(config, scenes.focal, 1)
    points = turn @ (rays * depth[:, 0].flatten(1)[:, None]) + shift[..., None]  # B, 3, N
    targets, covisible = seen_points(scenes._replace(cameras=scenes.cameras[:, 1:]), points, config)
    pixels = scenes.focal * config.width
    flow = (targets - rays[:, :2]) * pixels[:, None, None]
    flow = torch.where((points[:, 2] > NEAR)[:, None], flow, torch.inf)
    size = config.height, config.width
    pose = torch.cat((turn, shift[..., None]), dim=2)
    pose = torch.cat((pose, torch.eye(4, device=pose.device)[3:].expand(len(pose), 1, 4)), dim=1)
    none, one = torch.zeros_like(pixels), torch.ones_like(pixels)
    rows = (pixels, none, one * (config.width / 2), none, pixels, one * (config.height / 2), none, none, one)
    intrinsics = torch.stack(rows, dim=1).unflatten(1, (3, 3))
    return images, depth, flow.unflatten(2, size), covisible.unflatten(1, size), intrinsics, pose


def seen_points(scenes: SceneBatch, points: Tensor, config: SceneConfig) -> tuple[Tensor, Tensor]:
    """Where the only camera of each scene sees the surface points (B, 3, N), given in its coordinates: x / z and y / z
    (B, 2, N), and whether it does: bool (B, N)."""
    ahead = points[:, 2] > NEAR
    targets = points[:, :2] / torch.where(ahead, points[:, 2], 1)[:, None]
    edge = 0.5 / scenes.focal[:, None]
    inside = ahead & (targets[:, 0].abs() < edge) & (targets[:, 1].abs() < edge * (config.height / config.width))
    depth = first_hit(scenes, torch.cat((targets, torch.ones_like(targets[:, :1])), dim=1)).depth
    return targets, inside & ((depth - points[:, 2]).abs() < 1e-3 * depth)


def _render_views(config: SceneConfig, scenes: SceneBatch) -> tuple[Tensor, Tensor]:
    fine, size = config.supersample, (config.height, config.width)
    views = scenes.cameras.shape[1]
    rays = _pixel_rays(config, scenes.focal, fine)
    hit = first_hit(scenes, rays)
    pixel = 1 / (scenes.focal * config.width * fine)  # width of a ray's footprint at unit depth
    colors = _shade(scenes, config.textures, rays, hit, pixel).unflatten(
        2, (views, config.height * fine, config.width * fine)
    )
    depth = hit.depth
    if fine > 1:
        colors = colors.unflatten(4, (-1, fine)).unflatten(3, (-1, fine)).mean((4, 6))
        # depth is of the pixel centers, through which no finer ray passes if there is an even number of them
        depth = first_hit(scenes, _pixel_rays(config, scenes.focal, 1)).depth
    images = (colors * 255 + 0.5).to(torch.uint8).transpose(1, 2).contiguous()
    return images, depth.unflatten(1, (views, *size))


def _pixel_rays(config: SceneConfig, focal: Tensor, fine: int) -> Tensor:
    """Camera rays of unit z through the centers of the (finer) pixels: (B, 3, N)."""
    x, y = (
        ((torch.arange(side * fine, device=focal.device) + 0.5) / fine - side / 2) / config.width
        for side in (config.width, config.height)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    plane = torch.stack((x.flatten(), y.flatten())) / focal[:, None, None]
    return torch.cat((plane, torch.ones_like(plane[:, :1])), dim=1)


class Hit(NamedTuple):
    """Where the rays of all views meet their scene first, in the axes of the solid that they meet."""

    depth: Tensor  # B, P: z-depth
    solid: Tensor  # B, P: row in the solids
    points: Tensor  # B, 3, P
    directions: Tensor  # B, 3, P: the rays, of unit z-depth
    half_sizes: Tensor  # B, 3, P: the solid's
    light: Tensor  # B, 3, P


def first_hit(scenes: SceneBatch, rays: Tensor) -> Hit:
    """What the camera rays (B, 3, N), of unit z, of each of the V cameras hit first."""
    turns, shifts = scenes.cameras[:, :, :3, :3], scenes.cameras[:, :, :3, 3:]
    solids, views = scenes.centers.shape[1], turns.shape[1]
    inward = scenes.rotations.mT  # B, S, 3, 3
    eyes = -(turns.mT @ shifts)[..., 0].mT  # B, 3, V: in the world, as the directions
    directions = (turns.mT @ rays[:, None]).transpose(1, 2).flatten(2)  # B, 3, P
    start = inward @ (eyes[:, None] - scenes.centers[..., None])  # B, S, 3, V
    paces = (inward.flatten(1, 2) @ directions).add_(1e-20)  # B, S * 3, P; never exactly zero
    paces = paces.unflatten(1, (solids, 3)).unflatten(3, (views, -1))  # B, S, 3, V, N

    # t at which the rays start + t * pace enter and leave: the room is left, the boxes are entered
    flat = slice(0, 1 + BOXES)
    inverse = paces[:, flat].reciprocal()
    reach = inverse.abs().mul_(scenes.half_sizes[:, flat, :, None, None])
    middle = inverse.mul_(-start[:, flat, ..., None])  # of the slab between two sides, which spans middle +- reach
    enter, leave = (middle - reach).amax(2), middle.add_(reach).amin(2)
    _send_away(enter, torch.maximum(enter - leave, -enter))

    # on balls it solves square * t^2 + 2 * half * t + rest = 0
    start_balls, radius = start[:, 1 + BOXES :, ..., None], scenes.half_sizes[:, 1 + BOXES :, 0, None, None]
    square = rays.square().sum(1)[:, None, None]  # B, 1, 1, N
    half = (paces[:, 1 + BOXES :] * start_balls).sum(2)  # B, balls, V, N
    inner = half.square() - square * (start_balls.square().sum(2) - radius.square())
    touch = (-half - inner.clamp(min=0).sqrt_()) / square
    _send_away(touch, torch.maximum(-inner, -touch))

    hits = torch.cat((leave[:, :1], enter[:, 1:], touch), dim=1).flatten(2)  # B, S, P
    hits += ~scenes.used[..., None] * _FAR
    depth, solid = hits.min(1)
    pace = paces.flatten(3).gather(1, solid[:, None, None].expand(-1, -1, 3, -1))[:, 0]
    light = inward @ scenes.light[:, None, :, None]  # B, S, 3, 1
    whole = torch.cat((start, *(x.expand(-1, -1, -1, views) for x in (scenes.half_sizes[..., None], light))), dim=2)
    row = solid.unflatten(1, (views, -1)) + torch.arange(0, views * solids, solids, device=solid.device)[:, None]
    origin, half_sizes, light = _take(whole.permute(0, 3, 1, 2).flatten(1, 2), row.flatten(1)).split(3, dim=1)
    return Hit(depth, solid, origin + depth[:, None] * pace, pace, half_sizes, light)


def _send_away(depth: Tensor, missed: Tensor) -> None:
    """Make `depth` far, in place, where a ray misses by a positive amount."""
    depth.add_(missed.clamp_(min=0), alpha=_FAR)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, R, K) at each point's row `index` (B, P) -> (B, K, P)."""
    columns = rows.mT.contiguous()
    return columns.gather(2, index[:, None].expand(-1, columns.shape[1], -1))


def _shade(scenes: SceneBatch, textures: str | None, rays: Tensor, hit: Hit, pixel: Tensor) -> Tensor:
    """RGB (B, 3, P) in 0..1 of what the camera rays (B, 3, N) of all views `hit`.

    pixel (B,): the width of a ray's footprint at unit depth.
    """
    room, ball = hit.solid == 0, hit.solid > BOXES

    # the side of a box, or of the room, that a point lies on is the one it is closest to
    unit = hit.points / hit.half_sizes
    near = unit.abs()
    on_side = near == near.amax(1, keepdim=True)  # along x, y, z
    flat = unit * on_side
    normal = torch.where(ball[:, None], unit, flat)
    lit = (hit.light * normal).sum(1) * torch.where(room, -1.0, 1.0)
    side = 2 * on_side[:, 1] + 4 * on_side[:, 2] + (flat.sum(1) > 0)  # -x, +x, -y, +y, -z, +z

    # surface coordinates: the two others on a side; on a ball Lambert's azimuthal equal-area map
    surface = torch.where(room, side, hit.solid + 5)
    bulge = (2 / (1 + unit[:, 2]).clamp(min=1e-3)).sqrt_()
    shift = side * 17.3  # so that the sides of a box differ
    x, y, z = hit.points.unbind(1)
    u = torch.where(ball, x * bulge, torch.where(on_side[:, 0], z, x) + shift)
    v = torch.where(ball, y * bulge, torch.where(on_side[:, 1], z, y) + shift)

    facing = (normal * hit.directions).sum(1).abs()  # cosine times the length of the ray
    length = rays.square().sum(1).repeat(1, scenes.cameras.shape[1])
    footprint = pixel[:, None] * hit.depth * length / facing.clamp(min=0.3)
    return (_texture(scenes, textures, surface, u, v, footprint) * (0.72 + 0.36 * lit)[:, None]).clamp_(0, 1)


def _texture(
    scenes: SceneBatch, textures: str | None, surface: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> Tensor:
    """RGB (B, 3, P) of the points (u, v) (B, P) in scene units on `surface` (B, P); detail finer than the `footprint`
    (B, P) of a ray fades out."""
    cells = scenes.cells
    density = (cells[..., 0] * cells[..., 4] - cells[..., 1] * cells[..., 3]).sqrt()  # cells to a scene unit
    patterns = torch.cat((cells, density[..., None], scenes.noise, scenes.waves, scenes.colors.flatten(2)), dim=2)
    taken = _take(patterns, surface)
    uu, uv, u0, vu, vv, v0, density, falloff, edge, a, b, c, bend, hard = taken[:, :14].unbind(1)
    blur = footprint * density
    u, v = uu * u + uv * v + u0, vu * u + vv * v + v0

    table = _lattice_table(scenes.lattice)
    sharp = (2 - 2 * blur).clamp_(0, 1)
    noise = _lattice_noise(table, u, v) * sharp[:, None]
    x, y, width, weight = u, v, blur, torch.ones_like(blur)
    cos, sin = math.cos(OCTAVE_TURN) * OCTAVE_RATIO, math.sin(OCTAVE_TURN) * OCTAVE_RATIO
    for _ in range(1, OCTAVES):
        x, y, width, weight = cos * x - sin * y, sin * x + cos * y, width * OCTAVE_RATIO, weight * falloff
        noise += _lattice_noise(table, x, y) * (weight * (2 - 2 * width).clamp_(0, 1))[:, None]
    blobs = noise[:, 0] * edge
    blobs = blobs / (1 + blobs * blobs).sqrt_()  # edges of blobs

    bend = bend * noise[:, 1]
    wave = _sin_of_turns(a * u + bend) * _sin_of_turns(b * v + c + bend) * (hard * sharp)
    wave = wave / (1 + wave * wave).sqrt_()
    mean, of_blobs, of_noise, of_wave = taken[:, 14:].unflatten(1, (4, 3)).unbind(1)
    colors = mean + of_blobs * blobs[:, None] + of_noise * noise[:, 1:] + of_wave * wave[:, None]
    if textures is not None:
        image = scenes.image.gather(1, surface)
        colors = torch.where((image >= 0)[:, None], _photo_colors(textures, image, u, v, blur), colors)
    return colors.clamp(0.03, 1)


def _photo_colors(folder: str, image: Tensor, u: Tensor, v: Tensor, blur: Tensor) -> Tensor:
    """RGB (B, 3, P) of the user's textures: what `zoo.scenes.photos.put_images` puts where `image` (B, P) isn't -1."""
    texels = _photo_texels(folder, image.device)  # K, all levels' texels, 3
    level = ((blur * (IMAGE_SIDE / 8)).log2() + 0.5).clamp(0, IMAGE_LEVELS - 1).long()
    side = IMAGE_SIDE >> level
    first = 4 * (IMAGE_SIDE**2 - side * side) // 3  # texel of the level, behind all finer ones
    x, y = ((1 - (1 - (coordinate / 8) % 2).abs()) * (side - 1) for coordinate in (u, v))
    left, top = (torch.minimum(coordinate.long(), side - 2) for coordinate in (x, y))
    right, low = (x - left)[..., None], (y - top)[..., None]
    corner = image.clamp(min=0).long() * texels.shape[1] + first + top * side + left
    flat = texels.flatten(0, 1)
    above = flat[corner] * (1 - right) + flat[corner + 1] * right
    below = flat[corner + side] * (1 - right) + flat[corner + side + 1] * right
    return ((above * (1 - low) + below * low) / 255).movedim(-1, 1)


@lru_cache(maxsize=8)
def _photo_texels(folder: str, device: torch.device) -> Tensor:
    """The folder's K images at all levels, the finest first: uint8 (K, all levels' texels, 3)."""
    images = [
        np.concatenate([level.reshape(-1, 3) for level in texture_levels(path)]) for path in texture_files(folder)
    ]
    return torch.from_numpy(np.stack(images)).to(device)


def _sin_of_turns(turns: Tensor) -> Tensor:
    """sin(2 pi turns); whole turns go first, since a CPU's vectorized sine is slow on large angles."""
    return (turns - turns.floor()).mul_(2 * math.pi).sin_()


def _lattice_table(lattice: Tensor) -> Tensor:
    """(B, 8, 64 * 64): per cell and channel the factors of 1, x, y and xy in bilinear interpolation."""
    right, low = lattice.roll(-1, 3), lattice.roll(-1, 2)
    twist = lattice - right - low + right.roll(-1, 2)
    return torch.cat((lattice, right - lattice, low - lattice, twist), dim=1).flatten(2)


def _lattice_noise(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, 2, P) smooth noise in -1..1 at `x`, `y` (B, P) in cells."""
    column, row = x.floor(), y.floor()
    x, y = x - column, y - row
    x, y = ((t * t * (3 - 2 * t))[:, None] for t in (x, y))  # smoothstep: no creases at the cells' borders
    wrap = NOISE_CELLS - 1
    cell = ((row.int() & wrap) * NOISE_CELLS + (column.int() & wrap)).long()
    corner, across, down, both = table.gather(2, cell[:, None].expand(-1, 8, -1)).unflatten(1, (4, 2)).unbind(1)
    return corner + down * y + (across + both * y) * x
