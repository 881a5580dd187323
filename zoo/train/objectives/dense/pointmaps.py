"""Pointmaps (DUSt3R): a 3D point for each pixel of two photos, from pairs whose depth and cameras are known."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import RecipeError
from zoo.models.pointmaps import PointmapModel
from zoo.pictures import color_depth, draw_images
from zoo.scenes.torch.random import Draws
from zoo.settings import Jitter, Side, Within
from zoo.train.data.jitter import color_jitter, draw_jitter, draw_jitters
from zoo.train.objectives.dense.pointmap_losses import ALPHA, confidence_loss, point_distances, regression_loss
from zoo.train.objectives.objective import PICTURED, Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STREAM = 2  # of random numbers, apart from those that scenes and other objectives are drawn with


@dataclass(frozen=True)
class PointsTransform:
    """One pair -> what the objective's forward takes; runs in the data workers.

    color_jitter: strength of brightness, contrast and saturation jitter, drawn for each image on its own.
    """

    color_jitter: float

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image1, image2: uint8 arrays (H, W, 3) -> uint8 tensors (3, H, W); points1, points2 as they are; jitter1,
        jitter2 (3, 2) of `draw_jitter`. A scene to be rendered passes as it is."""
        generator = torch.Generator().manual_seed(seed)
        if "image1" in sample:
            images = {key: torch.from_numpy(np.array(sample[key])).permute(2, 0, 1) for key in ("image1", "image2")}
            row = {key: image.contiguous() for key, image in images.items()}
            row |= {key: torch.from_numpy(np.array(sample[key])) for key in ("points1", "points2")}
        else:
            row = {key: value for key, value in sample.items() if key != "index"}
        if self.color_jitter:
            row |= {f"jitter{i}": draw_jitter(self.color_jitter, generator) for i in (1, 2)}
        return row

    def on_device(self, numbers: Tensor) -> dict[str, Tensor]:
        """The jitters of scenes by their numbers (B,), drawn where those lie."""
        draws = Draws(_STREAM, numbers)
        return {f"jitter{i}": draw_jitters(self.color_jitter, draws) for i in (1, 2) if self.color_jitter}


class Pointmaps(Objective):
    """Distance of predicted to true points, weighed by a confidence that is predicted too (DUSt3R, section 3.2).

    alpha: weight of the confidence's logarithm. heights: of a step's images only so many rows are taken, the middle
    ones, one of these numbers at random, so that a model learns several shapes; None for all rows. color_jitter: see
    `PointsTransform`.
    """

    sample = "points"
    figures = ("loss", "regression")

    def __init__(
        self,
        model: PointmapModel,
        source: Sized,
        alpha: Annotated[float, Within(0, 1000)] = ALPHA,
        heights: Sequence[Side] | None = None,
        color_jitter: Jitter = 0.0,
    ) -> None:
        if not isinstance(model, PointmapModel) or model.descriptor_dim:
            raise RecipeError(
                f"Pointmaps are learned by DUSt3R's models, not {type(model).__name__}"
                f"{' with descriptors' if isinstance(model, PointmapModel) else ''}; choose one of "
                "`zoo list 'dust3r*'` as the recipe's model."
            )
        super().__init__(model, source)
        if heights is not None and (not heights or any(h < 1 or h % model.patch_size for h in heights)):
            raise RecipeError(
                f"The objective's heights {list(heights)} are not all multiples of {model.patch_size}; correct them."
            )
        self.alpha = alpha
        self.heights = heights
        self.transform = PointsTransform(color_jitter)
        self.validation_transform = self.transform

    def views(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What a step takes of a batch: both images, uint8 (B, 3, H, W), and their true points (B, H, W, 3)."""
        batch = self.drawn(batch)
        images = [
            color_jitter(batch[f"image{i}"], batch[f"jitter{i}"]) if f"jitter{i}" in batch else batch[f"image{i}"]
            for i in (1, 2)
        ]
        points = [batch["points1"], batch["points2"]]
        if self.heights is None or not self.training:
            return images, points
        whole = images[0].shape[-2]
        height = self.heights[int(torch.randint(len(self.heights), ()))]  # the CPU's generator: nothing waits for it
        if height > whole:
            raise RecipeError(f"The objective's height of {height} is more than the images' {whole}; correct it.")
        rows = slice((whole - height) // 2, (whole - height) // 2 + height)
        return [image[:, :, rows] for image in images], [p[:, rows] for p in points]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `PointsTransform`'s rows, scenes rendered -> the loss, and the mean distance in it."""
        (img1, img2), (true1, true2) = self.views(batch)
        result = self.model(self.to_input(img1), self.to_input(img2))
        valid = true1.isfinite().all(-1), true2.isfinite().all(-1)
        distances = point_distances((result.points1, result.points2), (true1, true2), valid)
        loss = confidence_loss(distances, (result.confidence1, result.confidence2), valid, self.alpha)
        return dict(loss=loss, regression=regression_loss(distances, valid))

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """Sums over a batch of the loss and of the mean distance in it, of whole images."""
        outcome = self(batch)
        return len(batch["points1"]) * torch.stack([outcome[name].float() for name in self.figures])

    def picture(self, batch: dict[str, Tensor]) -> Figure:
        """How far away the points of a few first images are, and how far the model takes them to be."""
        images, (points, _) = self.views({key: value[:PICTURED] for key, value in batch.items()})
        found = self.model(*(self.to_input(image) for image in images)).points1
        away = [[color_depth(p.float().norm(dim=-1).cpu().numpy()) for p in view] for view in (points, found)]
        names = ("image 1", "image 2", "points of image 1", "as predicted")
        caption = (
            "Distance of the points to camera 1, near in yellow, far in blue, each over its own range, since the scale "
            "is not predicted; gray where it is not known."
        )
        return draw_images(list(zip(*map(as_pixels, images), *away)), names, "", caption, panel=2.4)

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """Both images and how far away their points are."""
        images, points = self.views(batch)
        one, two = (as_pixels(image) for image in images)
        away = [[color_depth(p.norm(dim=-1).cpu().numpy()) for p in view] for view in points]
        names = ("image 1", "image 2", "points of image 1", "points of image 2")
        caption = "Distance of the points to camera 1, near in yellow, far in blue; gray where it is not known."
        return draw_images(list(zip(one, two, *away)), names, "", caption, panel=2.4)
