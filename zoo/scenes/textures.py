"""What surfaces look like: blobs, noise and waves in closed form, or the user's images."""

import math

import numpy as np

from zoo.scenes.config import SceneConfig
from zoo.scenes.photos import put_images
from zoo.scenes.scene import NOISE_CELLS, Scene

OCTAVES = 3
OCTAVE_RATIO = 2.2  # of lattice densities; not 2, so that the lattices of two octaves never line up
OCTAVE_TURN = 0.7  # radians between the lattices of successive octaves, which hides their axes


def texture(
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
    cos, sin = math.cos(OCTAVE_TURN) * OCTAVE_RATIO, math.sin(OCTAVE_TURN) * OCTAVE_RATIO
    noise = lattice_noise(table, u, v) * np.clip(2 - 2 * blur, 0, 1)
    x, y, width, weight = u, v, blur, 1
    for _ in range(1, OCTAVES):
        x, y, width, weight = cos * x - sin * y, sin * x + cos * y, width * OCTAVE_RATIO, weight * falloff
        noise += lattice_noise(table, x, y) * (weight * np.clip(2 - 2 * width, 0, 1))
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
        put_images(config.textures, surfaces.image[surface], u, v, blur, colors)
    return np.clip(colors, 0.03, 1)


def lattice_table(lattice: np.ndarray) -> np.ndarray:
    """(8, 64 * 64): per cell and channel the factors of 1, x, y and xy in bilinear interpolation."""
    right, low = np.roll(lattice, -1, axis=2), np.roll(lattice, -1, axis=1)
    twist = lattice - right - low + np.roll(right, -1, axis=1)
    return np.concatenate([lattice, right - lattice, low - lattice, twist]).reshape(8, -1)


def lattice_noise(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2, V, N) smooth noise in -1..1 at `x`, `y` (V, N) in cells."""
    column, row = np.floor(x), np.floor(y)
    x, y = x - column, y - row
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)  # smoothstep: no creases at the cells' borders
    wrap = NOISE_CELLS - 1
    cell = (row.astype(np.intp) & wrap) * NOISE_CELLS + (column.astype(np.intp) & wrap)
    corner, across, down, both = np.take(table, cell, axis=1).reshape(4, 2, *cell.shape)
    both *= y
    across += both
    across *= x
    down *= y
    corner += across
    corner += down
    return corner
