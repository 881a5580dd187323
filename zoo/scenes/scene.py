"""A drawn scene: everything random about a pair of views, in a few arrays of fixed size."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BOXES, BALLS = 5, 3  # slots for objects; a scene leaves some of them empty
SURFACES = 6 + BOXES + BALLS  # the room's six sides, then one texture per object
NOISE_CELLS = 64  # side of the periodic noise lattice


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
