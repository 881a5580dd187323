"""Cross-view completion (CroCo): rebuild the hidden patches of one photo with the help of another."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from zoo.errors import DataError, RecipeError
from zoo.layers.masking import num_hidden, random_mask
from zoo.models.croco import PairModel
from zoo.pictures import draw_images, hide
from zoo.pretrain.objective import Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PairTransform:
    """One pair of photos -> what the objective's forward takes; runs in the data workers.

    crop: side of the random crops, drawn for each image on its own. color_jitter: strength of brightness,
    contrast and saturation jitter (0.4: factors 0.6..1.4), likewise.
    """

    num_patches: int
    mask_ratio: float
    crop: int | None
    color_jitter: float

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image1, image2: uint8 arrays (H, W, 3) -> uint8 tensors (3, h, w), and mask (N,) bool.

        All randomness comes from `seed`, so a sample does not depend on which worker makes it.
        """
        generator = torch.Generator().manual_seed(seed)
        img1 = self._augment(sample["image1"], generator)
        img2 = self._augment(sample["image2"], generator)
        mask = random_mask(1, self.num_patches, self.mask_ratio, generator)[0]
        return dict(image1=img1, image2=img2, mask=mask)

    def _augment(self, array: np.ndarray, generator: torch.Generator) -> Tensor:
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1)  # a copy: PIL's arrays are read-only
        if self.crop is not None:
            height, width = image.shape[-2:]
            if min(height, width) < self.crop:
                raise DataError(
                    f"A training image of {height}x{width} pixels is smaller than the crop of {self.crop}; "
                    "leave it out or resize it."
                )
            top = int(torch.randint(height - self.crop + 1, (), generator=generator))
            left = int(torch.randint(width - self.crop + 1, (), generator=generator))
            image = image[:, top : top + self.crop, left : left + self.crop]
        if self.color_jitter:
            low, high = 1 - self.color_jitter, 1 + self.color_jitter
            factors = torch.empty(3).uniform_(low, high, generator=generator).tolist()
            order = torch.randperm(3, generator=generator).tolist()
            steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
            for i in order:
                image = steps[i](image, factors[i])
        return image.contiguous()


class CrossViewCompletion(Objective):
    """Mean squared error of the hidden patches of image 1 (CroCo, section 3.2; v2 the same)."""

    sample = "pair"

    def __init__(
        self,
        model: PairModel,
        source: Sized,
        mask_ratio: float = 0.9,
        crop: int | None = None,
        color_jitter: float = 0.0,
    ) -> None:
        if not isinstance(model, PairModel) or model.head is None:
            raise RecipeError(
                f"Cross-view completion trains a two-image model, not {type(model).__name__}; choose one of "
                "`zoo list --form binocular` as the recipe's model."
            )
        super().__init__(model, source)
        size = model.encoder.patch_embed.img_size
        if crop is not None and size != (crop, crop):
            raise RecipeError(
                f"Crops of {crop} pixels don't fit a model made for {size[0]}x{size[1]}; set objective.crop, or "
                "model_args.img_size."
            )
        patches = model.encoder.patch_embed.num_patches
        self.hidden = num_hidden(patches, mask_ratio)
        self.transform = PairTransform(patches, mask_ratio, crop, color_jitter)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image1, image2 (B, 3, H, W) uint8 and mask (B, N) bool -> the loss."""
        img1, img2 = self.to_input(batch["image1"]), self.to_input(batch["image2"])
        return dict(loss=self.model.completion_loss(img1, img2, batch["mask"], self.hidden))

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """Image 1, what is left of it, and image 2."""
        one, two = as_pixels(batch["image1"]), as_pixels(batch["image2"])
        names = ("image 1: to be rebuilt", "what the network sees of it", "image 2: seen whole")
        caption = "Gray patches are hidden; the network predicts their pixels from the others and image 2."
        return draw_images(
            list(zip(one, hide(one, batch["mask"], self.model.patch_size), two)), names, "", caption, panel=2.4
        )
