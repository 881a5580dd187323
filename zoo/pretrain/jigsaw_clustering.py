"""Jigsaw Clustering: which quarters of a batch of montages come from one image, and where did each one stand?

Chen, Liu and Jia, CVPR 2021, arXiv 2104.00323. The network sees nothing but montages, in one batch.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as TF

from zoo.errors import RecipeError
from zoo.models.resnet import JigsawClusteringModel
from zoo.pictures import FRAME_COLORS, Frame, Panel, draw_panels
from zoo.pretrain.objective import Objective, as_tensor, seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUARTERS = 4


def quarter_boxes(sizes: Tensor, overlap: float) -> Tensor:
    """The overlapping quarters of images (section 3.1), (B, 4, 4): left, upper, right, lower in pixels.

    sizes: width and height of each image, (B, 2). overlap: share of a side that a quarter goes beyond its half.
    Quarters in the order top left, bottom left, top right, bottom right.
    """
    low = torch.div(sizes, 2, rounding_mode="floor") - overlap * sizes  # B, 2: where the second halves begin
    high = torch.div(sizes, 2, rounding_mode="floor") + overlap * sizes  # B, 2: where the first halves end
    zero = torch.zeros_like(low[:, 0])
    columns = [(zero, high[:, 0]), (low[:, 0], sizes[:, 0])]
    rows = [(zero, high[:, 1]), (low[:, 1], sizes[:, 1])]
    return torch.stack(
        [torch.stack((left, upper, right, lower), dim=1) for left, right in columns for upper, lower in rows], dim=1
    )


def make_montages(quarters: Tensor, permutation: Tensor) -> Tensor:
    """Shuffle the quarters (4n, C, s, s) of n images, put together crop by crop, into n montages (n, C, 2s, 2s).

    Shuffled quarter j = quarters[permutation[j]] stands in montage j mod n, in its cell j div n (row by row).
    """
    return rearrange(quarters[permutation], "(row column n) c h w -> n c (row h) (column w)", row=2, column=2)


class Labels(NamedTuple):
    """What is to be found out of each shuffled quarter, both (4n,): its image, and which of the four it is."""

    image: Tensor
    location: Tensor

    @classmethod
    def of(cls, permutation: Tensor) -> Labels:
        images = len(permutation) // QUARTERS
        return cls(permutation % images, torch.div(permutation, images, rounding_mode="floor"))


def cluster_loss(
    embedding: Tensor, image: Tensor, temperature: float, base_temperature: float, own: slice = slice(None)
) -> Tensor:
    """Supervised contrastive loss (section 3.3): mean over the quarters of -log of what their image's others get.

    embedding: (N, D), of unit length. image: (N,) whose quarter each is. own: the rows whose loss is taken; all of
    the others are what they are compared with. Always in float32.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.float()
        logits = embedding[own] @ embedding.T / temperature  # n, N
        same = image[own, None] == image[None, :]
        itself = torch.eye(len(image), dtype=torch.bool, device=image.device)[own]
        log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
        positive = same & ~itself
        mean = (log_share * positive).sum(dim=1) / positive.sum(dim=1)
        return -(temperature / base_temperature) * mean.mean()


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in their order; backward, each gets what all processes' losses say of its own rows.

    torch's own gather with gradients is deprecated, and what replaces it came after the oldest torch that we allow.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in their order, without gradients."""
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


@dataclass(frozen=True)
class QuarterTransform:
    """An image -> its four quarters, each with augmentations of its own; runs in the data workers."""

    overlap: float
    augment: transforms.Transform

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> quarters (4, 3, s, s) uint8. All randomness comes from `seed`."""
        image = as_tensor(sample["image"])
        size = torch.tensor([[image.shape[2], image.shape[1]]])
        boxes = quarter_boxes(size, self.overlap)[0].round().int().tolist()
        with seeded(seed):
            quarters = [
                self.augment(TF.crop(image, upper, left, lower - upper, right - left))
                for left, upper, right, lower in boxes
            ]
        return dict(quarters=torch.stack(quarters))


class JigsawClustering(Objective):
    """Supervised contrastive loss of quarters of one image, and cross-entropy of their places; logs the latter's
    accuracy.

    quarter: side of a quarter in the montage, which is twice as large. temperature, base_temperature: the loss is
    scaled by their ratio. crop_scale: of the random resized crop of each quarter. flip: its probability. blur:
    the range of its sigma in pixels.

    In a distributed run the quarters are shuffled over all processes. Loss and gradients (which the processes
    average) are those of one process with the whole batch.
    """

    def __init__(
        self,
        model: JigsawClusteringModel,
        source: Sized,
        quarter: int = 112,
        overlap: float = 0.3,
        temperature: float = 0.3,
        base_temperature: float = 0.07,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        blur: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        if not isinstance(model, JigsawClusteringModel):
            raise RecipeError(
                f"Jigsaw Clustering trains a model with its two branches, not {type(model).__name__}; choose one of "
                "`zoo list 'jigclu*' --form pretraining` as the recipe's model."
            )
        super().__init__(model, source)
        self.overlap, self.temperature, self.base_temperature = overlap, temperature, base_temperature
        self.transform = QuarterTransform(
            overlap,
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(quarter, scale=tuple(crop_scale), antialias=True),
                    transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                    transforms.RandomGrayscale(0.2),
                    transforms.RandomApply([transforms.GaussianBlur(13, tuple(blur))], p=0.5),  # 13: 3 sigma each way
                    transforms.RandomHorizontalFlip(flip),
                ]
            ),
        )

    def shuffle(self, quarters: Tensor) -> tuple[Tensor, Labels, Labels]:
        """Quarters (B, 4, C, s, s) of this process's images -> its montages (B, C, 2s, 2s), and labels.

        The labels are those of all processes' shuffled quarters, and those of this one's montages (cell by cell).
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
        images = len(quarters) * world
        permutation = torch.randperm(QUARTERS * images, device=quarters.device)
        if world > 1:
            dist.broadcast(permutation, src=0)
            quarters = gather_rows(quarters)  # as bytes; normalized later
        mine = rearrange(permutation, "(cell n) -> n cell", n=images)[rank::1]
        return quarters, Labels.of(permutation), Labels.of(mine)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
