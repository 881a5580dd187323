"""Procedural scenes of rooms: two views of each, with depth and flow, drawn and rendered on the fly.

Textured rooms with boxes and balls, seen by two cameras. Rendered pairs come with exact geometry and cost no download,
and a pair is a pure function of (seed, index), so any worker, rank or resumed run finds the same one.

`sample_scene` draws every random number of a pair into a few arrays of fixed size; `render` is plain array mathematics
on them (analytic ray casting, textures in closed form), so the batched port in `zoo.scenes.torch.render`, the only part
that needs torch, is of the latter alone.

Conventions. World and cameras: x right, y down, z forward; world points X, camera points `camera @ X`. Lengths are in
scene units (a room is a few units wide). Pixel centers lie at integer + 0.5, so the top left corner of the image is
(0, 0), its middle (W / 2, H / 2), and intrinsics scale with the image. Depth is z-depth: along the optical axis, not
along the ray.
"""

from zoo.scenes.config import SceneConfig
from zoo.scenes.draw import sample_scene
from zoo.scenes.pairs import GEOMETRY, TRUTHS, SceneImages, ScenePairs
from zoo.scenes.render import ScenePair, render_pair
from zoo.scenes.scene import Scene, Solids, Surfaces

__all__ = [
    "GEOMETRY",
    "TRUTHS",
    "Scene",
    "SceneConfig",
    "SceneImages",
    "ScenePair",
    "ScenePairs",
    "Solids",
    "Surfaces",
    "render_pair",
    "sample_scene",
]
