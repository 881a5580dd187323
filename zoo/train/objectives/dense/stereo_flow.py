"""Fine-tuning a two-image model for stereo matching and optical flow (CroCo v2, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zoo.colors import disparity_colors, finite_range, flow_colors, longest_of
from zoo.errors import RecipeError
from zoo.models.croco import DensePairModel
from zoo.pictures import draw_images
from zoo.settings import OneOf, Side, Within
from zoo.train.data.matching.augment import TRUTHS, MatchingTransform, change_colors, tilt, whole_pair
from zoo.train.data.matching.pairs import MatchingPairs
from zoo.train.objectives.dense.losses import LOSSES, DenseLoss
from zoo.train.objectives.dense.metrics import batch_metrics
from zoo.train.objectives.objective import Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Loss = Annotated[str, OneOf(tuple(LOSSES))]


class _Matching(Objective):
    """Base of what trains a dense two-image model on pairs whose displacement is known.

    loss: one of `zoo.train.objectives.dense.losses.LOSSES`. crop: height and width of the random crops of augmented
    pairs; by default files are cropped to the size that the model was made for, and scenes, which come in one size, are
    taken whole. colors: change them, and tilt a stereo pair's second camera, at random. noise: the largest standard
    deviation of noise that is added to each image, in gray levels of 255. overlap: of the tiles that validation images
    are judged by.
    """

    channels: ClassVar[int]
    validation_batch = 1  # images of a set differ in size

    def __init__(
        self,
        model: Any,
        source: Any,
        loss: Loss,
        crop: tuple[Side, Side] | None = None,
        colors: bool = True,
        noise: Annotated[float, Within(0, 255)] = 0.0,
        overlap: Annotated[float, Within(0, 1, below=True)] = 0.7,
    ) -> None:
        if not isinstance(model, DensePairModel) or model.out_chans not in (self.channels, self.channels + 1):
            raise RecipeError(
                f"The objective '{self.sample}' trains a two-image model with a dense head of {self.channels} channels "
                f"and a confidence, not {type(model).__name__}; choose one of `zoo list --form dense`."
            )
        if loss != "l1" and model.out_chans == self.channels:
            raise RecipeError(
                f"The loss '{loss}' needs a confidence, and the model gives {model.out_chans} channels; set "
                f"model_args.out_chans={self.channels + 1}, or objective.loss=l1."
            )
        super().__init__(model, source)
        self.loss: DenseLoss = LOSSES[loss]()
        self.overlap, self.noise = overlap, noise
        if crop is None and isinstance(source, MatchingPairs):
            height, width = model.encoder.patch_embed.img_size
            crop = height, width
        self.crop = crop
        self.transform = MatchingTransform(self.sample, self.crop, colors)
        self.validation_transform = whole_pair
        nothing = torch.zeros(1, self.channels, 1, 1)
        self.metrics = tuple(batch_metrics(nothing, nothing))
        self.held_out: tuple[str, ...] = ("",)

    def check_held_out(self, source: Any, held_out: Any) -> None:
        self.held_out = getattr(held_out, "set_names", ("",))
        self.figures = [f"{name}/{what}" for name in self.held_out for what in ("pairs", *self.metrics)]

    def figures_of(self, sums: list[float], samples: int) -> dict[str, float]:
        """Means over the pairs of each set (pairs without a known pixel are left out), and over the sets."""
        found: dict[str, list[float]] = {name: [] for name in self.metrics}
        width, each = len(self.metrics) + 1, {}
        for i, set_name in enumerate(self.held_out):
            pairs, *totals = sums[i * width : (i + 1) * width]
            for name, total in zip(self.metrics, totals):
                if pairs:
                    found[name].append(total / pairs)
                    each[f"{set_name}/{name}"] = total / pairs
        means = {name: sum(values) / len(values) for name, values in found.items() if values}
        return means | (each if len(self.held_out) > 1 else {})

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, channels, H, W) in pixels, unknown = inf."""
        truth = batch[TRUTHS[self.sample]]
        return truth[:, None] if self.channels == 1 else truth.movedim(-1, 1)

    def views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Images 1 and 2 as the network sees them, before normalization: (B, 3, H, W), 0 to 255."""
        batch = self.drawn(batch)
        img1, img2 = batch["image1"], batch["image2"]
        if "tilt" in batch:
            img2 = tilt(img2, batch["tilt"])
        if "colors" in batch:
            both = torch.cat((img1.float(), img2.float()))
            img1, img2 = change_colors(both, batch["colors"].transpose(0, 1).flatten(0, 1)).chunk(2)
        if self.noise:
            level = self.noise * torch.rand(2, len(img1), 1, 1, 1, device=img1.device)
            img1, img2 = (x + n * torch.randn_like(x, dtype=torch.float32) for x, n in zip((img1, img2), level))
        return img1, img2

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the transform's tensors -> the loss and the mean error in pixels."""
        img1, img2 = (self.to_input(x) for x in self.views(batch))
        loss, prediction = self.loss_of(img1, img2, truth := self.truth(batch))
        error, value = next(iter(batch_metrics(prediction.detach(), truth).items()))
        return {"loss": loss, error: value}

    def loss_of(self, img1: Tensor, img2: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (B, 3, H, W) and their truth (B, channels, H, W) -> the loss and the prediction."""
        dense = self.model(img1, img2).float()
        prediction, confidence = dense[:, : self.channels], dense[:, self.channels :]
        return self.loss(prediction, confidence, truth), prediction

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """Of one pair of any size: 1 and its metrics, or zeros if none of its pixels is known, at its set's place."""
        img1, img2 = (self.to_input(batch[name]) for name in ("image1", "image2"))
        found = self.predict_whole(img1, img2)
        truth = self.truth(batch)
        known = truth[:, 0].isfinite().any().float()
        row = known * torch.stack((known, *batch_metrics(found[:, : self.channels], truth).values()))
        place = batch["set"] if "set" in batch else torch.zeros(1, dtype=torch.long, device=row.device)
        return row.new_zeros(len(self.held_out), len(row)).index_add(0, place, row[None]).flatten()

    def predict_whole(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The model's map of images (B, 3, H, W) of any size, by tiles of the training crop."""
        tile = self.crop or tuple(img1.shape[-2:])
        return self.model.forward_tiled(img1, img2, tile=tile, overlap=self.overlap)

    def picture(self, batch: dict[str, Tensor]) -> Figure:
        """The pair, its truth and what the model makes of it, in the truth's colors."""
        images = [batch[name] for name in ("image1", "image2")]
        found = self.predict_whole(*(self.to_input(x) for x in images))[:, : self.channels].float()
        true, predicted = (x[0].movedim(0, -1).cpu().numpy() for x in (self.truth(batch), found))
        maps = [self.draw_truth(of, true) for of in (true, predicted)]
        what = TRUTHS[self.sample]
        names = ("image 1", "image 2", f"true {what}", f"predicted {what}")
        return draw_images([(*(as_pixels(x[0]) for x in images), *maps)], names, "", "Black: not known.", panel=3.2)

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """Both images as augmented, and the truth in colors; unknown pixels are black."""
        one, two = (as_pixels(x.clamp(0, 255)) for x in self.views(batch))
        truth = self.truth(batch).movedim(1, -1).cpu().numpy()
        maps = [self.draw_truth(of, of) for of in truth]
        names = ("image 1", "image 2", f"true {TRUTHS[self.sample]}")
        caption = "Augmented at random, as in training. Black: not known."
        return draw_images(list(zip(one, two, maps)), names, "", caption, panel=3.2)

    def draw_truth(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """A map (H, W, channels) in colors that span the range of its truth, (H, W, 3) in 0..1."""
        raise NotImplementedError


class Stereo(_Matching):
    """Disparity of the left image of a rectified pair, in pixels; by default CroCo-Stereo's loss."""

    sample = "stereo"
    channels = 1
    ranked_by = ("avgerr", False)

    def __init__(self, model: Any, source: Any, loss: Loss = "laplacian_bounded2", **settings: Any) -> None:
        super().__init__(model, source, loss, **settings)

    def draw_truth(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return disparity_colors(found[..., 0], finite_range(truth[..., 0]))


class Flow(_Matching):
    """Optical flow from image 1 to image 2, in pixels; by default CroCo-Flow's loss."""

    sample = "flow"
    channels = 2
    ranked_by = ("EPE", False)

    def __init__(self, model: Any, source: Any, loss: Loss = "laplacian_bounded", **settings: Any) -> None:
        super().__init__(model, source, loss, **settings)

    def draw_truth(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return flow_colors(found, longest_of(truth))
