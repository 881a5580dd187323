"""Masked image modeling on single images: pixels, features of a moving average, or a teacher's tokens."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from zoo.errors import RecipeError
from zoo.layers.masking import num_hidden, random_mask
from zoo.models._masked import MaskedAutoencoder
from zoo.pretrain.objective import Objective


class ImageTransform:
    """One image -> a random resized crop, perhaps flipped, and which of its patches are hidden (MAE, appendix A).

    size: height and width of the crop. scale: range of the crop's share of the image's area.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float], num_patches: int, mask_ratio: float) -> None:
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.num_patches, self.mask_ratio = num_patches, mask_ratio

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> uint8 tensor (3, h, w), and mask (N,) bool."""
        image = torch.from_numpy(sample["image"]).permute(2, 0, 1)
        return dict(image=self.augment(image).contiguous(), mask=random_mask(1, self.num_patches, self.mask_ratio)[0])


class MaskedImageModeling(Objective):
    """Mean squared error of an image's hidden patches (MAE, section 3; ConvMAE, HiViT and iTPN's pixel form)."""

    model: MaskedAutoencoder

    def __init__(
        self, model: MaskedAutoencoder, source: Sized, mask_ratio: float = 0.75, scale: tuple[float, float] = (0.2, 1.0)
    ) -> None:
        if not isinstance(model, MaskedAutoencoder):
            raise RecipeError(
                f"Masked image modeling trains a masked autoencoder, not {type(model).__name__}; choose one of "
                "`zoo list --form pretraining` as the recipe's model."
            )
        super().__init__(model, source)
        height, width = model.img_size
        patches = height * width // model.patch_size**2
        self.hidden = num_hidden(patches, mask_ratio)
        self.transform = ImageTransform((height, width), tuple(scale), patches, mask_ratio)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and mask (B, N) bool -> the loss."""
        return dict(loss=self.model.completion_loss(self.to_input(batch["image"]), batch["mask"], self.hidden))
