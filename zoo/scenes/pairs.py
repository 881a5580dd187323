"""Rendered scenes as endless map-style datasets: pairs of views, or single ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoo.errors import RecipeError
from zoo.scenes.config import SceneConfig
from zoo.scenes.draw import sample_scene
from zoo.scenes.photos import texture_files
from zoo.scenes.render import render, render_views

GEOMETRY = ("depth1", "depth2", "intrinsics", "pose", "flow", "covisible")
TRUTHS = (*GEOMETRY, "points1", "points2", "disparity")
"""What may come with a pair's images, by name; see `ScenePair`. `GEOMETRY` is all that the others follow from."""


class ScenePairs:
    """Map-style dataset of rendered pairs; holds no state, so it may be pickled, shuffled and split freely.

    Items are dictionaries of "image1" and "image2", uint8 (H, W, 3), and of `truths`, any of `TRUTHS`.

    Raises:
        DataError: `config.textures` is not a folder with images.
        RecipeError: the disparity of pairs that are not rectified.
    """

    def __init__(self, config: SceneConfig, seed: int = 0, length: int = 1_000_000, truths: Sequence[str] = ()) -> None:
        self.config, self.seed, self.length, self.truths = config, seed, length, tuple(truths)
        if unknown := sorted(set(self.truths) - set(TRUTHS)):
            raise RecipeError(f"Scenes don't come with {', '.join(unknown)}; choose from {', '.join(TRUTHS)}.")
        if "disparity" in self.truths and not config.rectified:
            raise RecipeError("Only rectified scenes have a disparity; set rectified, or ask for the flow.")
        if config.textures is not None:
            texture_files(config.textures)  # fail here rather than in a worker

    def __len__(self) -> int:
        return self.length

    def changed(self, **settings: Any) -> "ScenePairs":
        """The same sequence with another displacement, texture_scale or image_size.

        Raises:
            RecipeError: another setting.
        """
        if fixed := sorted(settings.keys() - {"displacement", "texture_scale", "image_size"}):
            raise RecipeError(
                f"Scenes keep their {', '.join(fixed)}; change displacement, texture_scale or image_size only."
            )
        return ScenePairs(replace(self.config, **settings), self.seed, self.length, self.truths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(f"Pair {index} is outside of the {self.length} pairs.")
        scene = sample_scene(self.config, self.seed, index)
        if not self.truths:
            images, _ = render_views(self.config, scene)
            return {"image1": images[0], "image2": images[1]}
        pair = render(self.config, scene)
        return {"image1": pair.img1, "image2": pair.img2, **{name: getattr(pair, name) for name in self.truths}}


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
        images, _ = render_views(config, replace(scene, cameras=scene.cameras[:1]))
        return {"image": images[0]}
