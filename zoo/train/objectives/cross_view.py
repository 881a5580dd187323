"""Cross-view completion (CroCo): rebuild the hidden patches of one photo with the help of another."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from zoo.errors import DataError, ImageError, RecipeError
from zoo.layers.masking import num_hidden, random_order
from zoo.layers.patchify import TARGETS
from zoo.models.croco import PairModel
from zoo.pictures import CompletionPicture, completion_caption, draw_completions, draw_images, hide, to_pixels
from zoo.scenes.torch.pairs import DrawnScenes
from zoo.scenes.torch.random import Draws
from zoo.settings import Jitter, OneOf, Share, Side
from zoo.train.data.jitter import color_jitter, draw_jitter, draw_jitters
from zoo.train.objectives.objective import PICTURED, Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_logger = logging.getLogger("zoo")

PUBLISHED_SIDE, PUBLISHED_CROP = 256, 224
"""Of the images of habitat_release, and of the crops that CroCo is trained on (CroCo, section 4)."""

_STREAM = 1  # of random numbers, apart from those that scenes are drawn with


@dataclass(frozen=True)
class PairTransform:
    """One pair of photos -> what the objective's forward takes; runs in the data workers.

    size: height and width that the model takes. Images of another size are resized, so that the shorter side is
    `resize` pixels, and cropped at random, each for itself; those of this size only if `crop` says so. color_jitter:
    strength of brightness, contrast and saturation jitter (0.4: factors 0.6..1.4), each image's own; it is drawn here
    and done in `forward`. any_size: take images of all sizes as they are; the largest have num_patches.
    """

    num_patches: int
    size: tuple[int, int]
    resize: int
    crop: bool
    color_jitter: float
    any_size: bool = False

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image1, image2: uint8 arrays (H, W, 3) -> uint8 tensors (3, h, w), jitter1, jitter2 (3, 2) of
        `draw_jitter`, and order (N,), the place of each patch in the order in which patches are hidden.

        A sample without images, a scene to be rendered, passes as it is. All randomness comes from `seed`, so a
        sample does not depend on which worker makes it.
        """
        generator = torch.Generator().manual_seed(seed)
        row = {key: value for key, value in sample.items() if key != "index"}
        for i in (1, 2):
            if f"image{i}" in row:
                row[f"image{i}"] = self._crop(row[f"image{i}"], generator)
            if self.color_jitter:
                row[f"jitter{i}"] = draw_jitter(self.color_jitter, generator)
        return row | dict(order=random_order(1, self.num_patches, generator)[0])

    def on_device(self, numbers: Tensor) -> dict[str, Tensor]:
        """The order and jitters of scenes by their numbers (B,), drawn where those lie."""
        draws = Draws(_STREAM, numbers)
        row = {f"jitter{i}": draw_jitters(self.color_jitter, draws) for i in (1, 2) if self.color_jitter}
        return row | dict(order=draws.unit(self.num_patches).argsort(dim=1))

    def _crop(self, array: np.ndarray, generator: torch.Generator) -> Tensor:
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1)  # a copy: PIL's arrays are read-only
        if self.any_size or (tuple(image.shape[-2:]) == self.size and not self.crop):
            return image.contiguous()
        if min(image.shape[-2:]) != self.resize:
            image = TF.resize(image, [self.resize], InterpolationMode.BICUBIC, antialias=True)
        (high, wide), (height, width) = image.shape[-2:], self.size
        if high < height or wide < width:
            raise DataError(
                f"A training image of {high}x{wide} pixels is smaller than the crop of {height}x{width}; leave it "
                "out, or set objective.resize."
            )
        if high >= 2 * height or wide >= 2 * width:
            _warn_of_strangers(high, wide, height, width)
        top = int(torch.randint(high - height + 1, (), generator=generator))
        left = int(torch.randint(wide - width + 1, (), generator=generator))
        return image[:, top : top + height, left : left + width].contiguous()


@cache  # once for each size
def _warn_of_strangers(*sizes: int) -> None:
    _logger.warning(
        "Crops of %dx%d from images of %dx%d pixels, each drawn for itself, may have nothing in common; set "
        "objective.resize lower.",
        *sizes[2:],
        *sizes[:2],
    )


class CrossViewCompletion(Objective):
    """Mean squared error of the hidden patches of image 1 (CroCo, section 3.2; v2 the same).

    crop: side of random crops of both images, the size that the model was made for; without it images of that size are
    taken as they are. resize: length that the shorter side of images gets before they are cropped; by default 256 for
    224, as in the published data, whose crops of a pair always overlap. target: what is predicted of a patch, one of
    `zoo.layers.patchify.TARGETS`, by default what the model was made for;
    a run should end with that. mask_ratio and target may change in a curriculum; a validation keeps those given here.
    """

    sample = "pair"
    figures = ("loss",)
    transform: PairTransform

    def __init__(
        self,
        model: PairModel,
        source: Sized,
        mask_ratio: Share = 0.9,
        crop: Side | None = None,
        resize: Side | None = None,
        color_jitter: Jitter = 0.0,
        target: Annotated[str, OneOf(tuple(TARGETS))] | None = None,
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
        if crop is not None and isinstance(source, DrawnScenes):
            raise RecipeError("Scenes rendered on the device are not cropped; leave out objective.crop or data.render.")
        self.num_patches = model.encoder.patch_embed.num_patches
        self.configure(mask_ratio=mask_ratio, target=target)
        shorter = max(min(size), round(min(size) * PUBLISHED_SIDE / PUBLISHED_CROP)) if resize is None else resize
        if shorter < min(size):
            raise RecipeError(f"Images resized to {shorter} hold no crop of {min(size)}; set objective.resize higher.")
        self.transform = PairTransform(self.num_patches, tuple(size), shorter, crop is not None, color_jitter)
        self.validation_transform = self.transform
        self.judged_by = dict(hidden=self.hidden, target=self.target)

    def configure(self, **settings: Any) -> None:
        for name, value in settings.items():
            if name == "mask_ratio":
                self.mask_ratio = value
                self.hidden = num_hidden(self.num_patches, value)
                if not 0 < self.hidden < self.num_patches:
                    raise RecipeError(
                        f"A mask_ratio of {value} hides {self.hidden} of {self.num_patches} patches; hide some, not "
                        "all of them."
                    )
            elif name == "target":
                self.target = value
            else:
                super().configure(**{name: value})

    def take_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        if self.transform.crop:
            raise RecipeError("Crops are of one size; leave out objective.crop, or data.image_size of the curriculum.")
        for height, width in sizes:
            try:
                rows, columns = self.model._grid(torch.empty(1, 3, height, width, device="meta"))
            except ImageError as error:
                raise RecipeError(
                    f"The model takes no images of {height}x{width} ({error}); set model_args.dynamic_img_size, or "
                    "change data.image_size of the curriculum."
                ) from error
            if not 0 < num_hidden(rows * columns, self.mask_ratio) < rows * columns <= self.num_patches:
                raise RecipeError(
                    f"Images of {height}x{width} have {rows * columns} patches, too few to hide some or more than the "
                    f"model's {self.num_patches}; set model_args.img_size to the largest image_size of the curriculum."
                )
        self.transform = replace(self.transform, any_size=True)

    def views(self, batch: dict[str, Tensor], hidden: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the model sees of a batch: images 1 and 2, uint8 (B, 3, H, W), and mask (B, N) bool.

        hidden: how many patches are, by default as many as in this step.
        """
        batch = self.drawn(batch)
        img1, img2 = (
            color_jitter(batch[f"image{i}"], batch[f"jitter{i}"]) if f"jitter{i}" in batch else batch[f"image{i}"]
            for i in (1, 2)
        )
        order = batch["order"]
        patches = img1.shape[-2] * img1.shape[-1] // self.model.patch_size**2
        if patches < order.shape[1]:  # of a smaller size than others: the order of its patches among themselves
            order = order[:, :patches].argsort(dim=1).argsort(dim=1)
        return img1, img2, order < (self._hidden(patches) if hidden is None else hidden)

    def _hidden(self, patches: int) -> int:
        return self.hidden if patches == self.num_patches else num_hidden(patches, self.mask_ratio)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `PairTransform`'s rows, scenes rendered -> the loss."""
        img1, img2, mask = self.views(batch)
        img1, img2 = self.to_input(img1), self.to_input(img2)
        return dict(loss=self.model.completion_loss(img1, img2, mask, self._hidden(mask.shape[1]), self.target))

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the loss over a batch."""
        img1, img2, mask = self.views(batch, self.judged_by["hidden"])
        img1, img2 = self.to_input(img1), self.to_input(img2)
        return len(mask) * self.model.completion_loss(img1, img2, mask, **self.judged_by).float()[None]

    def picture(self, batch: dict[str, Tensor]) -> Figure:
        """Completions of a few pairs."""
        img1, img2, mask = (x[:PICTURED] for x in self.views(batch, self.judged_by["hidden"]))
        completed = self.model.complete(self.to_input(img1), self.to_input(img2), mask=mask)
        one, two = as_pixels(img1), as_pixels(img2)
        hidden = hide(one, mask, self.model.patch_size)
        rows = [CompletionPicture("", *row) for row in zip(two, hidden, to_pixels(completed.image, self.model), one)]
        return draw_completions(rows, completion_caption(self.model))

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """Image 1, what is left of it, and image 2."""
        img1, img2, mask = self.views(batch)
        one, two = as_pixels(img1), as_pixels(img2)
        names = ("image 1: to be rebuilt", "what the network sees of it", "image 2: seen whole")
        caption = "Gray patches are hidden; the network predicts their pixels from the others and image 2."
        rows = list(zip(one, hide(one, mask, self.model.patch_size), two))
        return draw_images(rows, names, "", caption, panel=2.4)
