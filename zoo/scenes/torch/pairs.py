"""Scenes that become images where the model trains, as map-style datasets: what a worker gives is drawn or numbered."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.scenes.draw import sample_scene
from zoo.scenes.pairs import ScenePairs
from zoo.scenes.torch.draw import draw_scenes
from zoo.scenes.torch.render import SceneBatch, render, render_views, scene_arrays


class DrawnScenes:
    """Map-style dataset of the scenes of `pairs`, drawn but not rendered: the arrays of `scene_arrays`.

    `render_batch` makes of their batches what `pairs` itself gives. views: 2, or 1 for single images.
    """

    keys: tuple[str, ...] = SceneBatch._fields
    """Of a batch, what `render_batch` turns into images; the rest passes."""

    def __init__(self, pairs: ScenePairs, views: int = 2) -> None:
        self.pairs, self.config, self.views = pairs, pairs.config, views

    def __len__(self) -> int:
        return len(self.pairs)

    def changed(self, **settings: Any) -> DrawnScenes:
        """See `ScenePairs.changed`."""
        return type(self)(self.pairs.changed(**settings), self.views)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return scene_arrays(sample_scene(self.config, self.pairs.seed, index))

    def drawn(self, batch: dict[str, Tensor]) -> SceneBatch:
        """The scenes of a batch, on its device."""
        return SceneBatch(**{key: batch[key] for key in self.keys})

    @torch.no_grad()
    def render_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the loader, on its device: the scenes in it become image1 and image2, or image, uint8
        (B, 3, H, W), and the truths of `pairs`."""
        rest = {key: value for key, value in batch.items() if key not in self.keys}
        scenes = self.drawn(batch)
        if self.views == 1:
            images, _ = render_views(self.config, scenes._replace(cameras=scenes.cameras[:, :1]))
            return dict(image=images[:, 0], **rest)
        if not self.pairs.truths:
            images, _ = render_views(self.config, scenes)
            return dict(image1=images[:, 0], image2=images[:, 1], **rest)
        pairs = render(self.config, scenes)
        return dict(image1=pairs.images[:, 0], image2=pairs.images[:, 1], **pairs.truths(self.pairs.truths), **rest)


class NumberedScenes(DrawnScenes):
    """Scenes that are drawn on the device, too: what a worker gives is their number and ranges.

    They are scenes of the same kind as those of `pairs`, but not the same ones; see `zoo.scenes.torch.draw`.
    """

    keys = ("scene", "displacement", "texture_scale")

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.numbers(np.array([index])).items()}

    def numbers(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of the scenes `index` (B,), as `__getitem__` gives them one by one."""
        ranges = {key: np.array([getattr(self.config, key)], dtype=np.float32) for key in self.keys[1:]}
        return {"scene": index.astype(np.int64), **{key: np.repeat(of, len(index), 0) for key, of in ranges.items()}}

    def drawn(self, batch: dict[str, Tensor]) -> SceneBatch:
        return draw_scenes(self.config, self.pairs.seed, *(batch[key] for key in self.keys))
