"""What pretraining is for: fine-tuning a backbone on labeled images, and a linear classifier on a frozen one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import RecipeError
from zoo.pictures import draw_images, to_pixels
from zoo.settings import AreaRange, Jitter, Like, Share, Within
from zoo.train.data.loading import seed_python
from zoo.train.objectives.objective import Objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Policy = Annotated[
    str,
    Like(
        r"(original|originalr|v0|v0r|3a|rand|augmix)"
        r"(-(m(10|\d)|n[1-9]|w[1-9]|d-?[1-9]|p(1|0?\.\d{1,4})|a\d(\.\d{1,4})?|mstd\d{1,3}(\.\d{1,4})?|mmax(10|\d)"
        r"|inc[01]|b[01]|tweights|t3a))*",
        "rand-m9-mstd0.5-inc1",
    ),
]
"""Of timm.data.auto_augment: its name, and numbers that its operations can take."""


class LabeledTransform:
    """One labeled image -> uint8 tensors, through timm's transforms (arguments: timm.data.create_transform)."""

    def __init__(self, size: tuple[int, int], **settings: Any) -> None:
        # "prefetcher": timm's word for leaving the normalization to the device
        self.transform = create_transform((3, *size), interpolation="bicubic", use_prefetcher=True, **settings)
        for operation in _operations(self.transform):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> uint8 tensor (3, h, w); label: int -> int64 scalar."""
        image: Any = self.transform(Image.fromarray(sample["image"]))
        return dict(image=image, label=torch.tensor(sample["label"]))


def _operations(transform: Any) -> list[Any]:
    """The operations of timm's policies in a transform."""
    found: list[Any] = []
    for step in getattr(transform, "transforms", ()):
        for several in getattr(step, "policy", [getattr(step, "ops", [])]):
            found += several
    return found


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """timm's, also to no bits at all, which its strongest magnitudes ask for and Pillow 13 refuses: black as before."""
    return image.point(lambda _: 0) if bits < 1 else auto_augment.posterize(image, bits, **settings)


class LabeledObjective(Objective):
    """Base of what trains a model's classifier on the classes of its source."""

    labeled = True
    figures: Sequence[str] = ("loss", "top1", "top5")
    """What `judge` gives."""
    ranked_by = ("top1", True)

    def __init__(self, model: Any, source: Any, **augmentation: Any) -> None:
        super().__init__(model, source)
        classes = getattr(source, "num_classes", 0)
        if not classes:
            raise RecipeError(
                f"{type(self).__name__} needs labeled images, and these have no labels; sort them into one folder a "
                "class, or choose another objective."
            )
        named = bool(source.classes)  # numbers alone may lack the last ones
        if model.num_classes < classes or (named and model.num_classes != classes):
            raise RecipeError(
                f"The images have {classes} classes and the model has {model.num_classes}; set "
                f"model_args.num_classes={classes}."
            )
        self.classes = getattr(source, "classes", ()) or [f"class {i}" for i in range(classes)]
        size = _input_size(model)
        self.transform = LabeledTransform(size, is_training=True, **augmentation)
        self.validation_transform = LabeledTransform(size, crop_pct=model.pretrained_cfg["crop_pct"])

    def logits(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) -> B, classes."""
        return self.model(images)

    def augment(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A batch -> images as the model takes them, and their labels (B,), or shares of the classes (B, classes)."""
        return self.to_input(batch["image"]), batch["label"]

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The images, what augmentation and mixing make of them, and the labels."""
        twice = {key: torch.cat((value, value)) for key, value in batch.items()}  # mixing wants an even number
        images, targets = self.augment(twice)
        pixels = to_pixels(images, self.model)
        labels = [self._describe(target) for target, _ in zip(targets, samples)]
        rows = [(sample["image"] / 255, seen) for sample, seen in zip(samples, pixels)]
        return draw_images(rows, ("in the data", "what the network sees"), "", "Left: the target.", labels, panel=2.4)

    def _describe(self, target: Tensor) -> str:
        """A label, or the one or two classes that mixing leaves, with their shares."""
        if target.ndim == 0:
            return self.classes[int(target)]
        best = target.topk(2)
        shares = [(self.classes[i], share) for i, share in zip(best.indices.tolist(), best.values.tolist())]
        return "\n".join(f"{share:.0%} {name}" for name, share in shares if share > 0.05)

    def check_held_out(self, source: Any, held_out: Any) -> None:
        classes = getattr(held_out, "num_classes", 0)
        names = [of.classes for of in (source, held_out) if getattr(of, "classes", ())]
        if not 0 < classes <= self.model.num_classes or names[1:] not in ([], names[:1]):
            raise RecipeError(
                f"The validation images, of {classes} classes, are not of those that are trained on; set "
                "validation.path (or validation.split) to images of the same classes."
            )

    def judge(self, batch: dict[str, Tensor]) -> Tensor:
        """Sums over a batch of the cross-entropy and of the hits (in percent) among the best and the best five."""
        labels = batch["label"]
        logits = self.logits(self.to_input(batch["image"])).float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # B, 5
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return torch.stack((loss, 100.0 * best[:, 0].sum(), 100.0 * best.sum()))


class Classification(LabeledObjective):
    """Fine-tuning of the whole model, with timm's augmentations (MAE, appendix A.1: the masked papers' settings).

    mixup, cutmix: their Beta distributions' parameter, 0 for neither. label_smoothing: share of the target that is
    spread over all classes. erasing: probability that a box of an image is replaced by noise. augment: timm's
    policy, such as "rand-m9-mstd0.5-inc1". scale: range of the random crop's share of the image's area.
    """

    def __init__(
        self,
        model: Any,
        source: Any,
        mixup: Annotated[float, Within(0, 1000)] = 0.0,
        cutmix: Annotated[float, Within(0, 1000)] = 0.0,
        label_smoothing: Annotated[float, Within(0, 1, below=True)] = 0.1,
        erasing: Share = 0.0,
        augment: Policy | None = None,
        scale: AreaRange = (0.08, 1.0),
        color_jitter: Jitter = 0.0,
    ) -> None:
        super().__init__(model, source, auto_augment=augment, scale=scale, color_jitter=color_jitter)
        self.label_smoothing, self.erasing = label_smoothing, erasing
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=model.num_classes)

    def augment(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = super().augment(batch)
        seed_python(int(torch.randint(2**32, ())))  # timm's erasing and mixing draw from Python and NumPy
        if self.erasing:
            images = RandomErasing(self.erasing, mode="pixel", device=images.device)(images)
        if self.mix is None:
            return images, labels
        if len(images) % 2:
            raise RecipeError("Mixing pairs the images of a process; choose a batch_size that makes them even.")
        return self.mix(images, labels)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and label (B,) -> the loss, and without mixing the hits in percent."""
        images, labels = self.augment(batch)
        logits = self.logits(images)
        if self.mix is not None:
            return dict(loss=F.cross_entropy(logits, labels))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return dict(loss=loss, top1=100.0 * (logits.argmax(dim=1) == labels).float().mean())


class LinearProbe(LabeledObjective):
    """A linear classifier on the frozen backbone's features.

    norm: of the features, by batch and without affine (MAE, appendix A.1); without it the classifier is a plain one, as
    MoCo's and Jigsaw Clustering's. scale: see `Classification`.
    """

    def __init__(self, model: Any, source: Any, scale: AreaRange = (0.08, 1.0), norm: bool = True) -> None:
        super().__init__(model, source, scale=scale, color_jitter=0.0)
        model.requires_grad_(False)
        self.head = model.get_classifier().requires_grad_(True)
        self.norm = nn.BatchNorm1d(self.head.in_features, eps=1e-6, affine=False) if norm else None
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        self.model.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return self.head(features if self.norm is None else self.norm(features))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) uint8 and label (B,) -> the loss and the hits in percent."""
        logits, labels = self.logits(self.to_input(batch["image"])), batch["label"]
        return dict(loss=F.cross_entropy(logits, labels), top1=100.0 * (logits.argmax(dim=1) == labels).float().mean())

    @torch.no_grad()
    def trained(self) -> nn.Module:
        """The model, with the norm as part of its classifier."""
        model = copy.deepcopy(self.model)
        if self.norm is not None:
            fold_norm(self.norm, model.get_classifier())
        return model


@torch.no_grad()
def fold_norm(norm: nn.BatchNorm1d, linear: nn.Linear) -> None:
    """Make `linear` compute what `norm`, with its running statistics, and it compute together."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    linear.bias.add_(linear.weight @ shift)
    linear.weight.mul_(scale)


def _input_size(model: Any) -> tuple[int, int]:
    """Height and width that a model was made for."""
    for module in (model, getattr(model, "patch_embed", None)):
        if (size := getattr(module, "img_size", None)) is not None:
            return tuple(size)
    return tuple(model.pretrained_cfg["input_size"][1:])
