"""Jigsaw Clustering: which quarters in a batch of montages are of one image, and where did each one stand?

Chen, Liu and Jia, CVPR 2021, arXiv 2104.00323. The network sees each image once, in pieces, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
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
from zoo.settings import AreaRange, Share, Side, Temperature, Within
from zoo.train.machines.processes import gather, gather_differentiably, rank, world
from zoo.train.objectives.jigsaw.patches import BlurRange, check_blur, random_blur, to_tensor
from zoo.train.objectives.objective import Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quarter_boxes(sizes: Tensor, overlap: float) -> Tensor:
    """The overlapping quarters of images (section 3.1): left, upper, right, lower in pixels, (B, 4, 4).

    sizes: width and height of each image, (B, 2). overlap: how far a quarter goes beyond its half, as a share of
    the side. In the order top left, bottom left, top right, bottom right.
    """
    middle, reach = sizes // 2, overlap * sizes  # B, 2
    first = torch.stack((torch.zeros_like(reach), middle + reach), dim=-1)  # B, 2, (begin, end)
    second = torch.stack((middle - reach, sizes), dim=-1)
    halves = (first, second)
    # B, (begin, end), (x, y) each
    boxes = [torch.stack((across[:, 0], down[:, 1]), dim=-1) for across in halves for down in halves]
    return torch.stack(boxes, dim=1).flatten(2)


class Shuffled(NamedTuple):
    """A process's montages, and what is to be found out of each cell of all processes' montages.

    montages: (B, C, 2s, 2s). image, location: (processes, B, 4), the cells row by row: whose quarter it is, and
    which of the four.
    """

    montages: Tensor
    image: Tensor
    location: Tensor


def shuffle(quarters: Tensor, permutation: Tensor, process: int = 0, processes: int = 1) -> Shuffled:
    """Tile the quarters (n, 4, C, s, s) of all processes' images, shuffled, into the montages of one `process`.

    permutation: (4n,). Counted quarter by quarter (all images' first ones, then all second ones...), quarter
    permutation[j] comes into cell j div n of montage j mod n.
    """
    place = rearrange(permutation, "(cell process b) -> process b cell", cell=4, process=processes)
    image, location = place % len(quarters), place // len(quarters)
    tiles = quarters[image[process], location[process]]  # B, 4, C, s, s
    montages = rearrange(tiles, "b (row column) c h w -> b c (row h) (column w)", row=2)
    return Shuffled(montages, image, location)


def cluster_loss(
    embedding: Tensor, image: Tensor, temperature: float, base_temperature: float, own: slice = slice(None)
) -> Tensor:
    """Supervised contrastive loss of quarters (section 3.3), in float32: each is to be close to its image's others.

    embedding: (N, D), of unit length. image: (N,), whose quarter each is. own: those whose loss is taken, compared
    with all.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        logits = embedding[own].float() @ embedding.float().T / temperature  # n, N
        number = torch.arange(len(image), device=image.device)
        itself = number[own, None] == number
        log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
        positive = (image[own, None] == image) & ~itself
        each = (log_share * positive).sum(dim=1) / positive.sum(dim=1)  # n
        return -(temperature / base_temperature) * each.mean()


@dataclass(frozen=True)
class QuarterTransform:
    """An image -> its four quarters, each with an augmentation of its own; runs in the data workers."""

    overlap: float
    augment: transforms.Transform

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> quarters (4, 3, s, s) uint8."""
        image = to_tensor(sample["image"])
        boxes = quarter_boxes(torch.tensor([[image.shape[2], image.shape[1]]]), self.overlap)[0].round().int()
        quarters = [self.augment(TF.crop(image, y, x, y2 - y, x2 - x)) for x, y, x2, y2 in boxes.tolist()]
        return dict(quarters=torch.stack(quarters))


class JigsawClustering(Objective):
    """Which quarters are of one image (contrastive), and where each one stood (cross-entropy); logs both losses and
    the share of places found.

    quarter: side in pixels that quarters have in the montages of 2x2. temperature: the contrastive loss is scaled
    by its ratio to base_temperature. crop_scale: area of the random resized crop of a quarter. flip: probability.
    blur: the range of its deviation in pixels.

    Several processes shuffle all of their quarters together, by one permutation. Loss and gradients, averaged over
    the processes, are those of one process with the whole batch.
    """

    def __init__(
        self,
        model: JigsawClusteringModel,
        source: Sized,
        quarter: Side = 112,
        overlap: Annotated[float, Within(0, 0.5)] = 0.3,
        temperature: Temperature = 0.3,
        base_temperature: Temperature = 0.07,
        crop_scale: AreaRange = (0.2, 1.0),
        flip: Share = 0.5,
        blur: BlurRange = (0.1, 2.0),
    ) -> None:
        if not isinstance(model, JigsawClusteringModel):
            raise RecipeError(
                f"Jigsaw Clustering trains a model with its two branches, not {type(model).__name__}; choose one of "
                "`zoo list 'jigclu*' --form pretraining` as the recipe's model."
            )
        super().__init__(model, source)
        self.overlap, self.temperature, self.base_temperature = overlap, temperature, base_temperature
        check_blur(quarter, blur)
        augment = [
            transforms.RandomResizedCrop(quarter, crop_scale, antialias=True),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            random_blur(blur),
            transforms.RandomHorizontalFlip(flip),
        ]
        self.transform = QuarterTransform(overlap, transforms.Compose(augment))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """quarters (B, 4, 3, s, s) uint8 -> the loss, its parts, and the share of places found."""
        shuffled = self.shuffle(batch["quarters"])
        embedding, logits = self.model(self.to_input(shuffled.montages))  # B, 4, dim; B, 4, 4
        embedding, logits = embedding.flatten(0, 1), logits.flatten(0, 1).float()
        own = slice(rank() * len(embedding), (rank() + 1) * len(embedding))
        everyone = gather_differentiably(embedding)
        cluster = cluster_loss(everyone, shuffled.image.flatten(), self.temperature, self.base_temperature, own)
        location = shuffled.location[rank()].flatten()
        locate = F.cross_entropy(logits, location)
        accuracy = (logits.argmax(dim=1) == location).float().mean()
        return dict(loss=cluster + locate, cluster_loss=cluster, location_loss=locate, location_accuracy=accuracy)

    def shuffle(self, quarters: Tensor) -> Shuffled:
        """Quarters (B, 4, C, s, s) of this process's images -> its montages, of the quarters of all processes."""
        permutation = torch.randperm(4 * len(quarters) * world(), device=quarters.device)
        if world() > 1:
            dist.broadcast(permutation, src=0)
        return shuffle(gather(quarters), permutation, rank(), world())  # gathered as bytes, normalized later

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The images with their quarters, and the montages with each quarter in its image's color."""
        images = [
            Panel(sample["image"] / 255, f"image {i + 1}", _quarter_frames(sample["image"], self.overlap, _color(i)))
            for i, sample in enumerate(samples)
        ]
        shuffled = self.shuffle(batch["quarters"])
        side = shuffled.montages.shape[-1] / 2
        montages = []
        for i, pixels in enumerate(as_pixels(shuffled.montages)):
            cells = zip(shuffled.image[0, i].tolist(), shuffled.location[0, i].tolist())
            frames = [
                Frame(cell % 2 * side, cell // 2 * side, side, side, _color(image), str(location + 1))
                for cell, (image, location) in enumerate(cells)
            ]
            montages.append(Panel(pixels, f"montage {i + 1}", frames))
        caption = (
            "The network sees the montages only. It tells which quarters are of one image (the frames' colors)\n"
            "and where each stood (numbers: 1 top left, 2 bottom left, 3 top right, 4 bottom right)."
        )
        return draw_panels([images, montages], "", caption)


def _quarter_frames(image: np.ndarray, overlap: float, color: str) -> list[Frame]:
    """The quarters of an image (H, W, 3), numbered; each a little inside of the one before, to tell them apart."""
    height, width = image.shape[:2]
    frames = []
    for i, (x, y, x2, y2) in enumerate(quarter_boxes(torch.tensor([[width, height]]), overlap)[0].tolist()):
        inset = 0.015 * i * min(height, width)
        frames.append(Frame(x + inset, y + inset, x2 - x - 2 * inset, y2 - y - 2 * inset, color, str(i + 1)))
    return frames


def _color(image: int) -> str:
    return FRAME_COLORS[image % len(FRAME_COLORS)]
