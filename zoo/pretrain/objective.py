"""What the engine trains: a model under its pretext task."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from zoo.errors import RecipeError


class Objective(nn.Module):
    """Base of all objectives: a batch goes in, the loss and what else is worth logging come out.

    Made from a model, the source of its samples (whose length and classes it may ask for), and the recipe's settings.
    All of its parameters and buffers are part of a run's checkpoint. One that can be validated has, besides, a
    `validation_transform`, and `judge`: a batch of its tensors -> the sums over it of the quantities `figures`.

    sample: what the source gives, "image" (image, index and maybe label) or "pair" (image1, image2, index).
    transform: one sample and a seed -> the tensors of a batch's row; runs in the data workers. All of its
        randomness comes from the seed, so a sample does not depend on which worker makes it; torch's global
        generator, which torchvision's transforms draw from, is seeded with it too.
    """

    sample: ClassVar[str] = "image"
    transform: Callable[[dict[str, Any], int], dict[str, Tensor]]

    def __init__(self, model: Any, source: Sized) -> None:
        super().__init__()
        self.model = model
        cfg = model.pretrained_cfg
        self.normalize = transforms.Normalize(cfg["mean"], cfg["std"])

    def to_input(self, images: Tensor) -> Tensor:
        """uint8 images of a batch -> what the model takes: values 0 to 1, normalized."""
        return self.normalize(images.float() / 255)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the transform's tensors -> "loss", a scalar to be minimized, and further scalars to be logged."""
        raise NotImplementedError

    def configure(self, **settings: Any) -> None:
        """Take other values of settings, before a step whose number they depend on (a recipe's curriculum).

        Raises RecipeError (a ValueError) for a setting that can't change.
        """
        if settings:
            raise RecipeError(
                f"{type(self).__name__} has no setting {' or '.join(settings)} that can change with the step; leave it "
                "out of the curriculum."
            )

    def trained(self) -> nn.Module:
        """What a finished run gives: the model, whose weights are written."""
        return self.model

    def after_step(self, progress: float) -> None:
        """Called on every process after each optimizer step; progress: the share of the run that is done."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and other 1-D ones."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()  # timm's ResNets
        return {f"model.{name}" for name in names}
