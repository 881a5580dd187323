"""Masked image modeling on single images: pixels, features of a moving average, or a teacher's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from zoo.errors import RecipeError
from zoo.layers.masking import block_mask, num_hidden, random_mask
from zoo.models.itpn import ITPNClip, ITPNEma
from zoo.models.shared.masked import MaskedAutoencoder
from zoo.pictures import completion_caption, draw_images, hide, to_pixels
from zoo.scenes.torch.pairs import DrawnScenes
from zoo.scenes.torch.random import Draws
from zoo.settings import AreaRange, Jitter, Share
from zoo.train.objectives.objective import PICTURED, Objective, as_pixels
from zoo.train.objectives.teachers import make_teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STREAM = 1  # of random numbers, apart from those that scenes are drawn with


class MaskedTransform:
    """One image -> a random resized crop, perhaps flipped, and which of its patches are hidden (MAE, appendix A).

    size: height and width of the crop. scale: range of the crop's share of the image's area. draw_mask: gives a mask
    (N,) or (1, N) from torch's CPU generator. color_jitter: strength of brightness, contrast and saturation
    jitter (0.4: factors 0.6..1.4).
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        draw_mask: Callable[[], Tensor],
        color_jitter: float = 0.0,
    ) -> None:
        self.scale = tuple(scale)
        steps = [
            transforms.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            transforms.RandomHorizontalFlip(),
        ]
        if color_jitter:
            steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
        self.augment = transforms.Compose(steps)
        self.draw_mask = draw_mask

    def check_whole(self) -> None:
        """Raise RecipeError (a ValueError) if images are to be cropped."""
        if self.scale != (1.0, 1.0):
            raise RecipeError(
                "Scenes rendered on the device are not cropped; set objective.scale=[1.0,1.0] or leave out data.render."
            )

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> uint8 tensor (3, h, w), and mask (N,) bool.

        A sample without an image, a scene to be rendered, passes as it is.
        """
        if "image" not in sample:
            row = {key: value for key, value in sample.items() if key != "index"}
            return row | dict(mask=self.draw_mask().flatten())
        image = torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1)  # a copy: PIL's arrays are read-only
        return dict(image=self.augment(image).contiguous(), mask=self.draw_mask().flatten())


class RandomMaskTransform(MaskedTransform):
    """`MaskedTransform` with uniformly random masks of `num_patches`."""

    def __init__(self, size: tuple[int, int], scale: tuple[float, float], num_patches: int, ratio: float) -> None:
        super().__init__(size, scale, partial(random_mask, 1, num_patches, ratio))
        self.num_patches, self.hidden = num_patches, num_hidden(num_patches, ratio)

    def on_device(self, numbers: Tensor) -> dict[str, Tensor]:
        """The masks of scenes by their numbers (B,), drawn where those lie."""
        return dict(mask=Draws(_STREAM, numbers).unit(self.num_patches).argsort(dim=1) < self.hidden)


class _Masked(Objective):
    """Base of what hides a part of an image: the same crops and masks whenever it is validated."""

    figures = ("loss",)
    transform: MaskedTransform

    @property
    def validation_transform(self) -> MaskedTransform:
        return self.transform

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the loss over a batch."""
        return len(batch["mask"] if "mask" in batch else batch["draw"]) * self(batch)["loss"].float()[None]


class MaskedImageModeling(_Masked):
    """Mean squared error of an image's hidden patches (MAE, section 3; ConvMAE, HiViT and iTPN's pixel form)."""

    def __init__(
        self,
        model: MaskedAutoencoder,
        source: Sized,
        mask_ratio: Share = 0.75,
        scale: AreaRange = (0.2, 1.0),
    ) -> None:
        if not isinstance(model, MaskedAutoencoder):
            raise RecipeError(
                f"Masked image modeling trains a masked autoencoder, not {type(model).__name__}; choose one of "
                "`zoo list --form pretraining` as the recipe's model."
            )
        super().__init__(model, source)
        rows, columns = model.encoder.grid_size
        self.hidden = num_hidden(rows * columns, mask_ratio)
        if not 0 < self.hidden < rows * columns:
            raise RecipeError(
                f"A mask_ratio of {mask_ratio} hides {self.hidden} of {rows * columns} patches; hide some, not all of "
                "them."
            )
        self.transform = RandomMaskTransform(model.img_size, scale, rows * columns, mask_ratio)
        if isinstance(source, DrawnScenes):
            self.transform.check_whole()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and mask (B, N) bool -> the loss."""
        batch = self.drawn(batch)
        return dict(loss=self.model.completion_loss(self.to_input(batch["image"]), batch["mask"], self.hidden))

    def picture(self, batch: dict[str, Tensor]) -> Figure:
        """Completions of a few images."""
        batch = self.drawn(batch)
        image, mask = batch["image"][:PICTURED], batch["mask"][:PICTURED]
        completed = self.model.complete(self.to_input(image), mask=mask)
        truth = as_pixels(image)
        rows = list(zip(hide(truth, mask, self.model.patch_size), to_pixels(completed.image, self.model), truth))
        return draw_images(rows, ("input", "completion", "truth"), "", completion_caption(self.model), panel=2.4)

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The images, their crops, and what is left of these."""
        return _show_masks(samples, self.drawn(batch), self.model.patch_size, "their pixels")


class MaskedFeatureModeling(MaskedImageModeling):
    """Hidden pixels, and hidden features of a moving average of the model itself (see `ITPNEma`)."""

    def __init__(self, model: ITPNEma, source: Sized, **settings: Any) -> None:
        if not isinstance(model, ITPNEma):
            raise RecipeError(
                f"Masked feature modeling trains iTPN's moving-average form, not {type(model).__name__}; choose one of "
                "`zoo list '*_ema'` as the recipe's model."
            )
        super().__init__(model, source, **settings)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and mask (B, N) bool -> the loss and its parts."""
        batch = self.drawn(batch)
        pixels, features = self.model.losses(self.to_input(batch["image"]), batch["mask"], self.hidden)
        return dict(loss=pixels + self.model.feature_weight * features, pixels=pixels, features=features)

    def after_step(self, progress: float) -> None:
        self.model.update_teacher(progress)


class MaskedTokenModeling(_Masked):
    """A teacher's tokens of the whole image, of which the model sees a part (iTPN's CLIP form, section 4.1).

    teacher: see `make_teacher`. hidden_share: of the patches, at most, in blocks. reference_range: see `Teacher`.
    """

    def __init__(
        self,
        model: ITPNClip,
        source: Sized,
        teacher: str,
        hidden_share: Share = 75 / 196,
        scale: AreaRange = (0.2, 1.0),
        reference_range: bool = False,
        color_jitter: Jitter = 0.0,
    ) -> None:
        if not isinstance(model, ITPNClip):
            raise RecipeError(
                f"Masked token modeling trains iTPN's CLIP form, not {type(model).__name__}; choose one of "
                "`zoo list '*_clip'` as the recipe's model."
            )
        super().__init__(model, source)
        grid = model.encoder.grid_size
        self.teacher = make_teacher(teacher, grid, reference_range)
        tokens = self.teacher(torch.zeros(1, 3, *model.img_size))
        if tokens.shape[2] != model.head.out_features:
            raise RecipeError(
                f"The teacher {teacher} has tokens of {tokens.shape[2]} channels and the model predicts "
                f"{model.head.out_features}; set model_args.teacher_dim."
            )
        hidden = round(hidden_share * grid[0] * grid[1])
        if not 0 < hidden < grid[0] * grid[1]:
            raise RecipeError(
                f"A hidden_share of {hidden_share} hides {hidden} of {grid[0] * grid[1]} patches; hide some, not all "
                "of them."
            )
        self.transform = MaskedTransform(model.img_size, scale, partial(block_mask, grid, hidden), color_jitter)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and mask (B, N) bool -> the loss."""
        targets = self.teacher(batch["image"].float() / 255)
        return dict(loss=self.model.token_loss(self.to_input(batch["image"]), batch["mask"], targets))

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The images, their crops, which the teacher sees, and what is left of these for the model."""
        patch_size = batch["image"].shape[-1] // self.model.encoder.grid_size[1]
        return _show_masks(samples, batch, patch_size, "the teacher's tokens of the whole crop")


def _show_masks(samples: Sequence[dict[str, Any]], batch: dict[str, Tensor], patch_size: int, predicted: str) -> Figure:
    pixels = as_pixels(batch["image"])
    seen = hide(pixels, batch["mask"], patch_size)
    caption = f"Gray patches are hidden; the network predicts {predicted}."
    if "image" not in samples[0]:  # scenes rendered on the device are not cropped
        return draw_images(list(zip(pixels, seen)), ("the scene", "what the network sees"), "", caption, panel=2.4)
    rows = list(zip((sample["image"] / 255 for sample in samples), pixels, seen))
    return draw_images(rows, ("in the data", "the crop", "what the network sees"), "", caption, panel=2.4)
