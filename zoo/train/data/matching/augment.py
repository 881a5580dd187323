"""Augmentations of stereo and flow pairs as CroCo v2 was fine-tuned with them (section 4, after CREStereo and RAFT).

What moves pixels is done in the data workers; colors and the second camera's tilt are drawn there and done by
`change_colors` and `tilt` on the device, for a whole batch at once. All randomness of a sample comes from its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zoo.errors import DataError
from zoo.photos import PngRows
from zoo.scenes.torch.random import Draws

TRUTHS = {"stereo": "disparity", "flow": "flow"}
"""By task the key of a sample's truth: disparity (H, W), flow (H, W, 2), float32 in pixels, unknown = inf."""

_CONTRAST, _GAMMA, _BRIGHTNESS, _HUE, _SATURATION = range(5)
_STREAM = 2  # of random numbers, apart from those that scenes are drawn with
_STEPS = 5  # color changes of an image at most
_MARGIN = 8  # pixels that a scaled image keeps beyond the crop (RAFT's rule)
_SPARSE = 0.7  # share of known pixels below which flow is scattered, not interpolated


class Colors(NamedTuple):
    """By how much the colors of a pair change; ranges of factors, of hue in turns of the color wheel."""

    contrast: tuple[float, float]
    gamma: tuple[float, float]
    brightness: tuple[float, float]
    hue: tuple[float, float]
    saturation: tuple[float, float]


STEREO_COLORS = Colors((0.8, 1.2), (0.7, 1.5), (0.5, 2.0), (-0.1, 0.1), (0.8, 1.2))
RIGHT_COLORS = STEREO_COLORS._replace(saturation=(-0.8, 1.2))  # as the published models were trained
FLOW_COLORS = Colors((0.6, 1.4), (1.0, 1.0), (0.6, 1.4), (-0.16, 0.16), (0.6, 1.4))


@dataclass(frozen=True)
class MatchingTransform:
    """A pair with its truth -> what a `zoo.train.objectives.dense.stereo_flow` objective's forward takes.

    task: "stereo" or "flow". crop: height and width of the random crops, None for whole images, which are then not
    scaled or flipped either. colors: whether colors (and a stereo pair's second camera) are to be changed.
    """

    task: str
    crop: tuple[int, int] | None
    colors: bool = True

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        """image1, image2: uint8 (H, W, 3), arrays or as `MatchingPairs` gives them, and the truth -> uint8 tensors
        (3, h, w), the truth as a tensor, colors (2, 5, 2) of `draw_*_colors`, for stereo tilt (4,). Samples without
        images, scenes to be rendered, get the latter two only."""
        rng = np.random.default_rng(seed)
        row = {key: value for key, value in sample.items() if key != "index"}
        if "image1" in row:
            name = TRUTHS[self.task]
            views = row["image1"], row["image2"], row[name]
            if self.crop is not None:
                augment = augment_stereo if self.task == "stereo" else augment_flow
                views = augment(*views, self.crop, rng)
            row["image1"], row["image2"] = (image_tensor(view) for view in views[:2])
            row[name] = torch.from_numpy(np.array(views[2], dtype=np.float32))
        if self.colors:
            draw = draw_stereo_colors if self.task == "stereo" else draw_flow_colors
            row["colors"] = draw(rng)
            if self.task == "stereo":
                row["tilt"] = draw_tilt(rng)
        return row

    def on_device(self, numbers: Tensor) -> dict[str, Tensor]:
        """The colors and tilts of scenes by their numbers (B,), drawn where those lie."""
        if not self.colors:
            return {}
        draws = Draws(_STREAM, numbers)
        if self.task == "flow":
            return dict(colors=_draw_flow_colors(draws))
        return dict(colors=_draw_stereo_colors(draws), tilt=_draw_tilts(draws))


def whole_pair(sample: dict[str, Any], seed: int) -> dict[str, Any]:
    """A sample to be judged: as it is, as tensors. The seed has no part in it."""
    row = {key: value for key, value in sample.items() if key != "index"}
    for name in ("image1", "image2"):
        if name in row:
            row[name] = image_tensor(row[name])
    for name in TRUTHS.values():
        if name in row:
            row[name] = torch.from_numpy(np.array(row[name], dtype=np.float32))
    return row


def image_tensor(image: np.ndarray | PngRows) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (3, H, W); a copy, since PIL's arrays are read-only."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


# --- What moves pixels --------------------------------------------------------------------------------------


def augment_stereo(
    left: np.ndarray | PngRows,
    right: np.ndarray | PngRows,
    disparity: np.ndarray,
    crop: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretched along x, cropped and flipped upside down, both images alike.

    Raises DataError (a ValueError) for images lower than the crop, which stretching along x can't help.
    """
    height, width = left.shape[:2]
    if height < crop[0]:
        raise DataError(
            f"A training image of {height}x{width} pixels is lower than the crop of {crop[0]}x{crop[1]}; leave it out "
            "or lower objective.crop."
        )
    factor = 1.0
    if rng.random() < 0.5:
        factor = 2 ** (rng.uniform(0, 1) if min(height, width) < 800 else rng.uniform(-0.2, 0.4))
        factor = max(factor, (crop[1] + _MARGIN) / width)
    scaled = max(round(width * factor), crop[1])
    top, x = int(rng.integers(height - crop[0] + 1)), int(rng.integers(scaled - crop[1] + 1))
    flip = rng.random() < 0.5

    rows = slice(top, top + crop[0])
    views = [left[rows], right[rows], disparity[rows]]  # first, since no other rows are decoded
    if scaled == width:
        views = [view[:, x : x + crop[1]] for view in views]
    else:
        step = width / scaled
        columns = np.minimum(((np.arange(x, x + crop[1]) + 0.5) * step).astype(np.int64), width - 1)  # nearest
        views = [
            *(_stretch(image, x * step, crop[1], step) for image in views[:2]),
            views[2][:, columns] / np.float32(step),
        ]
    if flip:
        views = [view[::-1] for view in views]
    return views[0], views[1], views[2]


def _stretch(image: np.ndarray, start: float, width: int, step: float) -> np.ndarray:
    """`width` columns from column `start` of the image on, each `step` of its columns wide."""
    box = (start, 0, min(start + width * step, image.shape[1]), image.shape[0])
    size = (width, image.shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))


def augment_flow(
    image1: np.ndarray | PngRows,
    image2: np.ndarray | PngRows,
    flow: np.ndarray,
    crop: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled and stretched, flipped, and cropped, both images alike; smaller images than the crop are enlarged."""
    image1, image2 = np.asarray(image1), np.asarray(image2)
    height, width = image1.shape[:2]
    factors = np.ones(2)
    if rng.random() < 0.8:
        factors *= 2 ** rng.uniform(-0.2, 0.5)
    if rng.random() < 0.8:
        factors *= 2 ** rng.uniform(-0.2, 0.2, 2)
    if (factors != 1).any() or height < crop[0] or width < crop[1]:
        factors = np.maximum(factors, [(crop[1] + _MARGIN) / width, (crop[0] + _MARGIN) / height])
    size = max(round(width * factors[0]), crop[1]), max(round(height * factors[1]), crop[0])
    if size != (width, height):
        flow = resize_flow(flow, size)
        image1, image2 = (
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in (image1, image2)
        )
    for axis, probability in ((1, 0.5), (0, 0.1)):
        if rng.random() < probability:
            image1, image2, flow = (np.flip(view, axis) for view in (image1, image2, flow))
            flow = flow * np.array([-1, 1] if axis == 1 else [1, -1], dtype=np.float32)
    top, left = int(rng.integers(size[1] - crop[0] + 1)), int(rng.integers(size[0] - crop[1] + 1))
    window = slice(top, top + crop[0]), slice(left, left + crop[1])
    return image1[window], image2[window], flow[window]


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Flow (H, W, 2) at another `size` (width, height), its x and y scaled with it.

    Dense flow is interpolated: next to unknown pixels it is unknown. Sparse flow is scattered: each known pixel to
    the one it falls on.
    """
    height, width = flow.shape[:2]
    factors = np.array(size, dtype=np.float32) / np.array([width, height], dtype=np.float32)
    known = np.isfinite(flow[..., 0])
    if known.mean() < _SPARSE:
        y, x = np.nonzero(known)
        found = np.full((size[1], size[0], 2), np.inf, dtype=np.float32)
        column, row = (np.minimum(((at + 0.5) * f).astype(np.int64), n - 1) for at, f, n in zip((x, y), factors, size))
        found[row, column] = flow[y, x] * factors
        return found
    channels = [np.where(known, flow[..., i], 0) for i in (0, 1)] + [~known]
    resized = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for channel in channels
    ]
    dense: np.ndarray = np.stack(resized[:2], axis=-1) * factors
    dense[resized[2] > 0] = np.inf
    return dense


# --- What changes colors, and the second camera's tilt ------------------------------------------------------


def draw_stereo_colors(rng: np.random.Generator) -> Tensor:
    """(2, 5, 2): for each image up to five color changes, their kind (-1 for none) and factor, in order.

    With p 0.5 one of the kinds, else all in random order, each itself done with p 0.5; factors are shared, but with
    p 0.5 the right image's are its own.
    """
    kinds = rng.permutation(5)
    if rng.random() < 0.5:
        kinds = kinds[:1]
    left = _factors(STEREO_COLORS, rng)
    right = _factors(RIGHT_COLORS, rng) if rng.random() < 0.5 else left
    return _color_steps(kinds, rng.random(len(kinds)) < 0.5, left, right)


def draw_flow_colors(rng: np.random.Generator) -> Tensor:
    """See `draw_stereo_colors`: contrast, brightness, hue and saturation in random order, with p 0.2 each image's
    own."""

    def draw() -> tuple[np.ndarray, np.ndarray]:
        kinds = rng.permutation([_CONTRAST, _BRIGHTNESS, _HUE, _SATURATION])
        return kinds, _factors(FLOW_COLORS, rng)

    first = draw()
    second = draw() if rng.random() < 0.2 else first
    every = np.ones(4, dtype=bool)
    return torch.stack([_color_steps(kinds, every, factors, factors)[0] for kinds, factors in (first, second)])


def _draw_stereo_colors(draws: Draws) -> Tensor:
    """`draw_stereo_colors` for each of a batch, on its device: (B, 2, 5, 2)."""
    kinds = draws.unit(5).argsort(dim=1)
    done = draws.unit(5) < 0.5
    only = (draws.unit(1) < 0.5) & (torch.arange(5, device=kinds.device) > 0)  # one kind: the others are left out
    left, right = (_draw_factors(colors, draws) for colors in (STEREO_COLORS, RIGHT_COLORS))
    factors = torch.stack((left, torch.where(draws.unit(1) < 0.5, right, left)), dim=1)  # B, 2, 5
    kinds = kinds[:, None].expand(-1, 2, -1)
    steps = torch.where((done & ~only)[:, None], kinds, -1)
    return torch.stack((steps.float(), factors.gather(2, kinds)), dim=3)


def _draw_flow_colors(draws: Draws) -> Tensor:
    """`draw_flow_colors` for each of a batch, on its device: (B, 2, 5, 2)."""
    kinds = torch.stack([draws.unit(5).argsort(dim=1) for _ in range(2)], dim=1)  # B, 2, 5
    factors = torch.stack([_draw_factors(FLOW_COLORS, draws) for _ in range(2)], dim=1)
    steps = torch.stack((torch.where(kinds == _GAMMA, -1, kinds).float(), factors.gather(2, kinds)), dim=3)
    own = (draws.unit(1) < 0.2)[:, None, None]
    return torch.where(own, steps, steps[:, :1])


def _draw_factors(colors: Colors, draws: Draws) -> Tensor:
    """(B, 5), in the order of the kinds."""
    low, high = (constant(tuple(limits[i] for limits in colors), draws.key.device) for i in (0, 1))
    return low + (high - low) * draws.unit(5)


def _draw_tilts(draws: Draws) -> Tensor:
    """`draw_tilt` for each of a batch, on its device: (B, 4)."""
    angle = draws.uniform(-math.radians(0.1), math.radians(0.1), 1)
    return torch.cat((angle, draws.unit(2), draws.uniform(-2, 2, 1)), dim=1) * (draws.unit(1) < 0.5)


def _factors(colors: Colors, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.uniform(*limits) for limits in colors])


def _color_steps(kinds: np.ndarray, done: np.ndarray, *factors: np.ndarray) -> Tensor:
    steps = np.full((len(factors), _STEPS, 2), -1.0)
    for row, of in zip(steps, factors):
        row[: len(kinds), 0] = np.where(done, kinds, -1)
        row[: len(kinds), 1] = of[kinds]
    return torch.from_numpy(steps.astype(np.float32))


def change_colors(images: Tensor, steps: Tensor) -> Tensor:
    """Images (B, 3, H, W) of values 0 to 255 changed by each one's `steps` (B, 5, 2): float32 in the same range.

    A batch's images differ in what is done when, so every kind is computed at every step, which a device does
    sooner than it can be asked what to leave out.
    """
    x = images.float() / 255
    for kind, factor in steps.permute(1, 2, 0)[..., None, None, None]:  # B, 1, 1, 1 each
        gray = _gray(x)
        changed = [
            _mix(x, gray.mean((2, 3), keepdim=True), factor),
            x.clamp(min=1e-6) ** factor.clamp(min=0.1),
            x * factor,
            turn_hue(x, factor),
            _mix(x, gray, factor),
        ]
        for which, other in enumerate(changed):
            x = torch.where(kind == which, other, x)
        x = x.clamp(0, 1)
    return 255 * x


def _gray(x: Tensor) -> Tensor:
    return 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def _mix(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return factor * x + (1 - factor) * other


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor on the device, once: copying them there would make it wait."""
    return torch.tensor(values, device=device)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """RGB images (B, 3, H, W) in 0..1 with the hue of HSV turned by `turns` (B, 1, 1, 1) of the color wheel."""
    high, low = x.amax(1), x.amin(1)
    span = high - low
    red, green, blue = x.unbind(1)
    sixth = torch.where(
        high == red,
        (green - blue) / span.clamp(min=1e-6),
        torch.where(high == green, 2 + (blue - red) / span.clamp(min=1e-6), 4 + (red - green) / span.clamp(min=1e-6)),
    )
    places = constant((5.0, 3.0, 1.0), x.device).view(3, 1, 1)
    k = (places + (sixth[:, None] + 6 * turns)) % 6
    return high[:, None] - span[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def draw_tilt(rng: np.random.Generator) -> Tensor:
    """With p 0.5 how a second camera is off: (4,) the rotation in radians, up to 0.1 degrees; its center in shares of
    the width and height; and a vertical shift of up to 2 pixels. Zeros if it isn't."""
    angle, shift = math.radians(rng.uniform(-0.1, 0.1)), rng.uniform(-2, 2)
    x, y = rng.random(2)
    off = rng.random() < 0.5
    return torch.tensor([angle, x, y, shift], dtype=torch.float32) * off


def tilt(images: Tensor, by: Tensor) -> Tensor:
    """Images (B, 3, H, W) as seen by cameras that are off `by` (B, 4) of `draw_tilt`: float32, edges repeated."""
    height, width = images.shape[-2:]
    angle, x, y, shift = by.float().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    # grid_sample counts from -1 to 1 in each direction: `aspect` makes both alike; (x, y) becomes the center
    aspect = height / width
    x, y, shift = 2 * x - 1, 2 * y - 1, 2 * shift / height
    rows = [
        torch.stack((cos, -sin * aspect, x - cos * x + sin * aspect * y), dim=1),
        torch.stack((sin / aspect, cos, y - sin / aspect * x - cos * y + shift), dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
