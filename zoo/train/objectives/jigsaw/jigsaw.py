"""Jigsaw: in which of a fixed set of orders are an image's nine patches given?

Noroozi and Favaro, ECCV 2016, arXiv 1603.09246, on a ResNet as VISSL trains it.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2 as transforms

from zoo.errors import RecipeError
from zoo.models.resnet import JigsawModel
from zoo.settings import AreaRange, Share, Side, Within
from zoo.train.objectives.jigsaw.patches import cut_patches, distortion, draw_puzzles, to_tensor
from zoo.train.objectives.jigsaw.permutations import read_permutations
from zoo.train.objectives.objective import Objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PuzzleTransform:
    """An image -> its nine patches and some of the orders to give them in; runs in the data workers.

    permutations: how many orders there are. puzzles: how many of them are drawn for an image.
    """

    permutations: int
    puzzles: int
    crop: transforms.Transform
    patch: int
    distort: transforms.Transform

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> patches (9, 3, p, p) uint8, row by row, and the numbers of their orders,
        permutation (puzzles,)."""
        patches = [self.distort(patch) for patch in cut_patches(self.crop(to_tensor(sample["image"])), self.patch)]
        return dict(patches=torch.stack(patches), permutation=torch.randint(self.permutations, (self.puzzles,)))


def _cropping(crop: int, resize: int | None, scale: AreaRange) -> list[transforms.Transform]:
    if resize is None:
        return [transforms.RandomResizedCrop(crop, scale, antialias=True)]
    return [
        transforms.Resize(resize, antialias=True),
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(crop),
    ]


class Jigsaw(Objective):
    """Cross-entropy of the order's number; logs its accuracy.

    crop: side in pixels of the random crop that is cut into 3x3 cells. resize: length that the image's shorter side
    gets before it is cropped and mirrored (VISSL), or None for a random resized crop of the area crop_scale (PIRL).
    patch: side of the patch at a random place in each cell. image_grayscale, grayscale: probability that the image, or
    a patch, loses its color. distort: all the rest of PIRL's augmentation of each patch. puzzles: orders of each image
    in a step; since the network embeds every patch for itself, more than one cost next to nothing. permutations: see
    `read_permutations`.
    """

    permutations: Tensor

    def __init__(
        self,
        model: JigsawModel,
        source: Sized,
        crop: Side = 255,
        resize: Side | None = 256,
        crop_scale: AreaRange = (0.6, 1.0),
        patch: Side = 64,
        image_grayscale: Share = 0.66,
        grayscale: Share = 0.0,
        distort: bool = False,
        puzzles: Annotated[int, Within(1, 1000)] = 1,
        permutations: str = "own",
    ) -> None:
        if not isinstance(model, JigsawModel):
            raise RecipeError(
                f"Jigsaw trains a model with a classifier of permutations, not {type(model).__name__}; choose one of "
                "`zoo list 'jigsaw*' --form pretraining` as the recipe's model."
            )
        if patch > crop // 3:
            raise RecipeError(
                f"Patches of {patch} pixels don't fit into the cells of a third of {crop}; set objective.patch or "
                "objective.crop."
            )
        if resize is not None and resize < crop:
            raise RecipeError(
                f"Crops of {crop} pixels don't fit into images resized to {resize}; set objective.resize."
            )
        super().__init__(model, source)
        self.register_buffer("permutations", read_permutations(model.permutations, permutations), persistent=False)
        self.transform = PuzzleTransform(
            model.permutations,
            puzzles,
            transforms.Compose([*_cropping(crop, resize, crop_scale), transforms.RandomGrayscale(image_grayscale)]),
            patch,
            distortion(grayscale) if distort else transforms.RandomGrayscale(grayscale),
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """patches (B, 9, 3, p, p) uint8 and permutation (B, puzzles) -> the loss, and the share of orders found."""
        embedded = self.model.embed(self.to_input(batch["patches"]))  # B, 9, dim
        image = torch.arange(len(embedded), device=embedded.device).view(-1, 1, 1)
        puzzles = embedded[image, self.permutations[batch["permutation"]]]  # B, puzzles, 9, dim
        logits, target = self.model.classify(puzzles.flatten(0, 1)).float(), batch["permutation"].flatten()
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return dict(loss=F.cross_entropy(logits, target), accuracy=accuracy)

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The image, its patches as the network gets them, and put back into their places."""
        order = self.permutations[batch["permutation"][:, 0]]
        image = torch.arange(len(order)).unsqueeze(1)
        caption = (
            f"The network sees the nine shuffled patches and tells which of {len(self.permutations):,} orders they are "
            "in.\nNumbers: the places where they belong, row by row."
        )
        return draw_puzzles(samples, batch["patches"][image, order], order, caption)
