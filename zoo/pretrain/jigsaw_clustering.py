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
from zoo.pretrain.objective import Objective
from zoo.pretrain.patches import seeded, to_tensor

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


class Shuffled(NamedTuple):
    """A process's montages (B, C, 2s, 2s), and what is to be found out of the quarters in all processes' montages.

    image, location: (processes, 4B), of each process's montages cell by cell (the cells row by row): whose quarter
    it is, and which of the four.
    """

    montages: Tensor
    image: Tensor
    location: Tensor

    @classmethod
    def of(cls, quarters: Tensor, permutation: Tensor, rank: int = 0, world: int = 1) -> Shuffled:
        """Tile the quarters (n, 4, C, s, s) of all n images, shuffled, into the montages of process `rank`.

        permutation: (4n,). Put together crop by crop (all images' first quarters, then all second ones...),
        shuffled quarter j is quarter permutation[j], and stands in cell j div n of montage j mod n.
        """
        images = len(quarters)
        place = rearrange(permutation, "(cell rank b) -> rank (cell b)", cell=QUARTERS, rank=world)
        image, location = place % images, torch.div(place, images, rounding_mode="floor")
        mine = quarters[image[rank], location[rank]]  # 4B, C, s, s
        montages = rearrange(mine, "(row column b) c h w -> b c (row h) (column w)", row=2, column=2)
        return cls(montages, image, location)


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
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(_world())[_rank()]


def _gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(_world())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


@dataclass(frozen=True)
class QuarterTransform:
    """An image -> its four quarters, each with augmentations of its own; runs in the data workers."""

    overlap: float
    augment: transforms.Transform

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> quarters (4, 3, s, s) uint8. All randomness comes from `seed`."""
        image = to_tensor(sample["image"])
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

    def shuffle(self, quarters: Tensor) -> Shuffled:
        """Quarters (B, 4, C, s, s) of this process's images -> its montages, out of the quarters of all processes."""
        images = len(quarters) * _world()
        permutation = torch.randperm(QUARTERS * images, device=quarters.device)
        if _world() > 1:
            dist.broadcast(permutation, src=0)
            quarters = _gather(quarters)  # as bytes; they are normalized later
        return Shuffled.of(quarters, permutation, _rank(), _world())

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """quarters (B, 4, 3, s, s) uint8 -> the loss, its two parts, and the share of locations found."""
        shuffled = self.shuffle(batch["quarters"])
        embedding, logits = self.model(self.to_input(shuffled.montages))  # 4B, D; 4B, 4
        location = shuffled.location[_rank()]
        everything = embedding if _world() == 1 else _GatherRows.apply(embedding)
        own = slice(_rank() * len(embedding), (_rank() + 1) * len(embedding))
        cluster = cluster_loss(everything, shuffled.image.flatten(), self.temperature, self.base_temperature, own)
        locate = F.cross_entropy(logits.float(), location)
        return dict(
            loss=cluster + locate,
            cluster_loss=cluster,
            location_loss=locate,
            location_accuracy=(logits.argmax(dim=1) == location).float().mean(),
        )


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0
