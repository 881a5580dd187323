"""What the jigsaw objectives' transforms share: patches cut from a grid, and their color distortion.

All of them draw from torch's CPU generator, which the data workers set to the sample's seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as TF

from zoo.errors import RecipeError
from zoo.pictures import Frame, Panel, draw_panels
from zoo.settings import Rising, Within
from zoo.train.objectives.objective import as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Deviation = Annotated[float, Within(0, 100, above=True)]


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 array (H, W, 3) -> uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: PIL's arrays are read-only


def cut_patches(image: Tensor, side: int, grid: int = 3) -> Tensor:
    """From each cell of a grid x grid, a patch of `side` pixels at a random place in it.

    image: (C, H, W) -> (grid * grid, C, side, side), the cells row by row.
    """
    height, width = image.shape[-2] // grid, image.shape[-1] // grid
    patches = []
    for row in range(grid):
        for column in range(grid):
            top = row * height + int(torch.randint(height - side + 1, ()))
            left = column * width + int(torch.randint(width - side + 1, ()))
            patches.append(image[:, top : top + side, left : left + side])
    return torch.stack(patches)


class Degrade(transforms.Transform):
    """Posterize to 4 to 8 bits, sharpen or soften (0.1 to 1.9), solarize (0 to 256) and stretch the contrast."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return dict(
            bits=int(torch.randint(4, 9, ())),
            sharpness=float(torch.empty(()).uniform_(0.1, 1.9)),
            threshold=int(torch.randint(257, ())),
        )

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        image = TF.adjust_sharpness(TF.posterize(inpt, params["bits"]), params["sharpness"])
        if params["threshold"] < 256:  # no pixel is as bright
            image = TF.solarize(image, params["threshold"])
        return TF.autocontrast(image)


def distortion(grayscale: float = 0.2, blur: bool = False, strength: float = 1.0) -> transforms.Transform:
    """PIRL's augmentation of an image or patch (uint8), without the crop and the normalization.

    grayscale: its probability. blur: half of the images, by a Gaussian of 0.1 to 2 pixels. strength: of the colors'
    changes, as a share of the published one: of how large the jitter is and how often the others are.
    """
    jitter = 0.4 * strength
    steps = [
        transforms.ColorJitter(jitter, jitter, jitter, jitter / 2),
        transforms.RandomApply([Degrade()], p=0.66 * strength),
        transforms.RandomGrayscale(grayscale * strength),
        transforms.RandomHorizontalFlip(),
    ]
    return transforms.Compose([*steps, random_blur()] if blur else steps)


def simclr_distortion(blur: bool = True) -> transforms.Transform:
    """The color distortion of PIRL's later recipe (VISSL's photo_gblur): SimCLR's, of strength 1 (arXiv 2002.05709,
    appendix A), and a flip."""
    steps = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        transforms.RandomGrayscale(0.2),
    ]
    return transforms.Compose([*steps, random_blur()] if blur else steps)


BlurRange = Annotated[tuple[_Deviation, _Deviation], Rising()]
"""Of a Gaussian's deviation in pixels."""


def check_blur(side: int, sigma: BlurRange = (0.1, 2.0)) -> None:
    """Raise RecipeError (a ValueError) if images of `side` pixels are too small for `random_blur`."""
    if _reach(sigma) >= side:
        raise RecipeError(
            f"A blur of up to {sigma[1]:g} pixels reaches {_reach(sigma)} of them, beyond images of {side}; make them "
            "larger, or leave it out."
        )


def _reach(sigma: BlurRange) -> int:
    return math.ceil(3 * sigma[1])


def random_blur(sigma: BlurRange = (0.1, 2.0)) -> transforms.Transform:
    """Half of the images blurred by a Gaussian of `sigma` pixels, that reaches to three deviations."""
    reach = _reach(sigma)
    return transforms.RandomApply([transforms.GaussianBlur(2 * reach + 1, tuple(sigma))], p=0.5)


def draw_puzzles(
    samples: Sequence[dict[str, Any]],
    patches: Tensor,
    order: Tensor,
    caption: str,
    crops: Sequence[np.ndarray] | None = None,
) -> Figure:
    """For each sample a row: the image, the patches as the network gets them, and the patches where they belong.

    patches: (B, 9, 3, p, p) uint8. order: (B, 9), the true place of each. crops: what else the network gets.
    """
    rows = []
    for i, sample in enumerate(samples):
        tiles, places = as_pixels(patches[i]), order[i].tolist()
        panels = dict(image=Panel(sample["image"] / 255))
        if crops is not None:
            panels["the crop"] = Panel(crops[i])
        panels["nine patches, shuffled"] = _mosaic(tiles, places)
        panels["put in place"] = _mosaic(tiles[np.argsort(places)], range(9))
        rows.append([panel._replace(title=title if i == 0 else "") for title, panel in panels.items()])
    return draw_panels(rows, "", caption)


def _mosaic(tiles: np.ndarray, places: Sequence[int]) -> Panel:
    """Nine patches (9, p, p, 3) in a grid with gaps, framed, each with the number of its place."""
    side = tiles.shape[1]
    gap = max(1, side // 12)
    canvas = np.ones((3 * side + 4 * gap, 3 * side + 4 * gap, 3))
    frames = []
    for k, (tile, place) in enumerate(zip(tiles, places)):
        left, upper = gap + k % 3 * (side + gap), gap + k // 3 * (side + gap)
        canvas[upper : upper + side, left : left + side] = tile
        frames.append(Frame(left, upper, side, side, "white", str(place + 1)))
    return Panel(canvas, "", frames)
