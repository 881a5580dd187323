"""What the engine trains: a model under its pretext task."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.pictures import draw_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PICTURED = 4
"""Samples of a validation's first batch that its picture shows."""


class Objective(nn.Module):
    """Base of all objectives: a batch goes in, the loss and what else is worth logging come out.

    Made from a model, the source of its samples (whose length and classes it may ask for), and the recipe's settings.
    All of its parameters and buffers are part of a run's checkpoint. One that can be validated has, besides, a
    `validation_transform`, and `judge`: a batch of its tensors -> the sums over it of the quantities `figures`.

    ranked_by: the figure that says which weights are best in validation, which a run keeps, and whether more is better.
    sample: what the source gives, "image" (image, index and maybe label) or "pair" (image1, image2, index).
    labeled: whether it asks the source for classes. Sources may read their labels only then.
    transform: one sample and a seed -> the tensors of a batch's row; runs in the data workers. All of its
        randomness comes from the seed, so a sample does not depend on which worker makes it; torch's global
        generator, which torchvision's transforms draw from, is seeded with it too. One that draws nothing of an
        image may have `on_device`: a batch's numbers, int64 (B,) -> the same tensors, drawn where the numbers lie.
    """

    sample: ClassVar[str] = "image"
    labeled: ClassVar[bool] = False
    ranked_by: ClassVar[tuple[str, bool]] = ("loss", False)
    mean: Tensor
    std: Tensor
    transform: Callable[[dict[str, Any], int], dict[str, Tensor]]
    figures: Sequence[str] = ()

    def __init__(self, model: Any, source: Sized) -> None:
        super().__init__()
        self.model = model
        cfg = model.pretrained_cfg
        for name in ("mean", "std"):  # buffers, since a step that copies numbers to the device waits for it
            self.register_buffer(name, torch.tensor(cfg[name]).view(-1, 1, 1), persistent=False)

    def drawn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with what its transform draws for it on its device (`on_device`), if it was to."""
        return batch | self.transform.on_device(batch["draw"]) if "draw" in batch else batch  # type: ignore[attr-defined]

    def to_input(self, images: Tensor) -> Tensor:
        """uint8 images of a batch -> what the model takes: values 0 to 1, normalized."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the transform's tensors -> "loss", a scalar to be minimized, and further scalars to be logged."""
        raise NotImplementedError

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """A picture of what the network sees, for `zoo show-batch`; the model may be on the meta device.

        samples: the source's, as the transform got them. batch: the transform's tensors. Here: all images of both.
        """
        images = {name: as_pixels(value) for name, value in batch.items() if value.ndim == 4 and value.shape[1] == 3}
        labels = [f"class {label}" for label in batch["label"].tolist()] if "label" in batch else []
        rows = [(sample["image"] / 255, *views) for sample, *views in zip(samples, *images.values())]
        return draw_images(
            rows, ("in the data", *images), "", "Augmented at random, as in training.", labels, panel=2.4
        )

    def picture(self, batch: dict[str, Tensor]) -> Figure | None:
        """A picture of what the model makes of a validation batch, for TensorBoard; None for none."""
        return None

    def configure(self, **settings: Any) -> None:
        """Take other values of settings, before a step whose number they depend on (a recipe's curriculum).

        Raises RecipeError (a ValueError) for a setting that can't change.
        """
        if settings:
            raise RecipeError(
                f"{type(self).__name__} has no setting {' or '.join(settings)} that can change with the step; leave it "
                "out of the curriculum."
            )

    def take_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Take images of these heights and widths, before the first step of a run whose steps differ in them.

        Raises RecipeError (a ValueError) for what is trained on one size.
        """
        raise RecipeError(
            f"{type(self).__name__} is trained on images of one size; leave data.image_size out of the curriculum."
        )

    def trained(self) -> nn.Module:
        """What a finished run gives: the model, whose weights are written."""
        return self.model

    def check_held_out(self, source: Any, held_out: Any) -> None:
        """Raise RecipeError (a ValueError) unless what is trained on `source` can be judged on `held_out`."""

    def figures_of(self, sums: list[float], samples: int) -> dict[str, float]:
        """What a validation reports: from the sums over `samples` samples of what `judge` gave."""
        return {name: total / samples for name, total in zip(self.figures, sums)}

    def after_step(self, progress: float) -> None:
        """Called on every process after each optimizer step; progress: the share of the run that is done."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and other 1-D ones."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()  # timm's ResNets
        return {f"model.{name}" for name in names}


def as_pixels(images: Tensor) -> np.ndarray:
    """uint8 images (..., 3, H, W) -> what can be drawn: float in 0..1, (..., H, W, 3)."""
    return (images.float() / 255).movedim(-3, -1).cpu().numpy()
