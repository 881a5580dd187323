"""Linear classifiers on a frozen ResNet's maps at several depths (Goyal et al., ICCV 2019, arXiv 1905.01235; VISSL)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.models.resnet import PretextResNet
from zoo.settings import AreaRange
from zoo.train.objectives.labels.classify import LabeledObjective, fold_norm

SIDES = dict(conv1=12, res2=6, res3=4, res4=3, res5=2)
"""Sides to which the maps are pooled: about 9,000 numbers each, as the paper has it (section 6.1)."""


class LinearHeads(LabeledObjective):
    """Seven classifiers, each on features normed by batch: of conv1 and res2 to res5, pooled to about 9,000 numbers,
    and two of the average, one of them without a norm (VISSL's linear evaluation).

    They share no weights, so their losses are added. Judges each; `top1` is the best one's. The trained model has the
    normed classifier of the average as its own. scale: of the random crop's area.
    """

    def __init__(self, model: Any, source: Any, scale: AreaRange = (0.08, 1.0)) -> None:
        if not isinstance(model, PretextResNet):
            raise RecipeError(
                f"Linear heads at several depths are of ResNets, not of {type(model).__name__}; use linear_probe."
            )
        super().__init__(model, source, scale=scale, color_jitter=0.0)
        model.requires_grad_(False)
        classes = model.num_classes
        levels: list[dict[str, Any]] = model.feature_info
        widths = [level["num_chs"] for level in levels]
        features = {name: width * side**2 for (name, side), width in zip(SIDES.items(), widths)}
        features["avgpool"] = widths[-1]
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.BatchNorm1d(of), nn.Linear(of, classes)) for name, of in features.items()}
        )
        self.heads["avgpool_plain"] = nn.Linear(widths[-1], classes)
        for module in self.heads.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        self.figures = ("loss", *(f"top1_{name}" for name in self.heads))

    def train(self, mode: bool = True) -> LinearHeads:
        super().train(mode)
        self.model.eval()
        return self

    def all_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Normalized images (B, 3, H, W) -> each head's logits (B, classes)."""
        with torch.no_grad():
            maps = self.model.forward_intermediates(images, intermediates_only=True)
            pooled = {
                name: F.adaptive_avg_pool2d(level, side).flatten(1) for (name, side), level in zip(SIDES.items(), maps)
            }
            pooled["avgpool"] = pooled["avgpool_plain"] = maps[-1].mean(dim=(2, 3))
        return {name: head(pooled[name]) for name, head in self.heads.items()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and label (B,) -> the sum of the losses, and the hits of each head in percent."""
        labels = batch["label"]
        found = self.all_logits(self.to_input(batch["image"]))
        hits = {f"top1_{name}": 100.0 * (of.argmax(dim=1) == labels).float().mean() for name, of in found.items()}
        return dict(loss=torch.stack([F.cross_entropy(of, labels) for of in found.values()]).sum(), **hits)

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """Sums over a batch of the losses' sum and of each head's hits (in percent)."""
        labels = batch["label"]
        found = [of.float() for of in self.all_logits(self.to_input(batch["image"])).values()]
        loss = torch.stack([F.cross_entropy(of, labels, reduction="sum") for of in found]).sum()
        return torch.stack((loss, *(100.0 * (of.argmax(dim=1) == labels).sum() for of in found)))

    def figures_of(self, sums: list[float], samples: int) -> dict[str, float]:
        found = super().figures_of(sums, samples)
        return {"top1": max(value for name, value in found.items() if name != "loss"), **found}

    def trained(self) -> nn.Module:
        """The model, with the average's normed classifier as its own."""
        model = copy.deepcopy(self.model)
        head: Any = copy.deepcopy(self.heads["avgpool"])
        fold_norm(*head)
        model.get_classifier().load_state_dict(head[1].state_dict())
        return model
