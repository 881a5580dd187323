"""From two photos to disparity or flow in arrays: nobody has to normalize, pad, cut into tiles or crop by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zoo.errors import ImageError
from zoo.photos import read_image, to_rgb

_STRIP = 16  # times the tile's longer side, over which an enlarged strip is refused


class StereoPrediction(NamedTuple):
    """disparity: float32 (H, W), by how many pixels the right image shows what the left one does farther left.
    confidence: float32 (H, W), the raw channel, which grows with the expected error; None without one."""

    disparity: np.ndarray
    confidence: np.ndarray | None


class FlowPrediction(NamedTuple):
    """flow: float32 (H, W, 2), the x and y in pixels by which image 1's content has moved in image 2. confidence: see
    `StereoPrediction`."""

    flow: np.ndarray
    confidence: np.ndarray | None


def to_batch(image: Any) -> Tensor:
    """An image as float32 (1, 3, H, W) in 0..1.

    image: a file; a PIL image; an array (H, W, 3) or (H, W), uint8, or what NumPy makes one of; or a tensor (3, H, W),
    uint8 or floating in 0..1. Transparency is left out. Raises ImageError (a ValueError) for anything else.
    """
    if isinstance(image, (str, Path)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = to_rgb(image)
    elif not isinstance(image, Tensor) and hasattr(image, "__array__"):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ImageError(
                f"An array of {image.dtype} of shape {list(image.shape)} is no image; give uint8 (height, width, 3)."
            )
        image = image if image.ndim == 3 else image[..., None]
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))
    if not isinstance(image, Tensor):
        raise ImageError(f"A {type(image).__name__} is no image; give a PIL image, an array or a tensor.")
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if image.ndim != 3 or len(image) not in (1, 3, 4) or not image.numel():
        raise ImageError(f"A tensor of shape {list(image.shape)} is no image; give (3, height, width).")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point() or not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
        raise ImageError(
            f"An image tensor is uint8, or floating with values from 0 to 1; this is {image.dtype}"
            f"{' with others' if image.is_floating_point() else ''}. Convert it."
        )
    return image.float()[:3].expand(3, -1, -1)[None]


def _check_shape(size: tuple[int, int], tile: tuple[int, int]) -> None:
    """Raises ImageError for strips, which would grow without measure: a side smaller than a tile is enlarged to it."""
    factor = max(tile[0] / size[0], tile[1] / size[1])
    if factor > 1 and factor * max(size) > _STRIP * max(tile):
        raise ImageError(
            f"Images of {size[0]}x{size[1]} pixels are too narrow for this model, which looks at tiles of {tile[0]}x"
            f"{tile[1]}; crop them to a fuller shape."
        )


@torch.inference_mode()
def predict_pair(model: Any, img1: Any, img2: Any, scale: float, **tiling: Any) -> StereoPrediction | FlowPrediction:
    """See `DensePairModel.predict`."""
    pair = [to_batch(image) for image in (img1, img2)]
    sizes = [tuple(image.shape[-2:]) for image in pair]
    if sizes[0] != sizes[1]:
        (height, width), (height2, width2) = sizes
        raise ImageError(
            f"The images differ in size ({height}x{width} and {height2}x{width2} pixels); give two of one size."
        )
    if not 0 < scale < math.inf:
        raise ImageError(f"Images can't be looked at {scale} times as large; give a positive scale.")
    size = (max(1, round(sizes[0][0] * scale)), max(1, round(sizes[0][1] * scale)))
    _check_shape(size, tiling.get("tile") or model.tile_size)
    like = next(model.parameters())
    mean, std = (torch.tensor(model.pretrained_cfg[key], device=like.device).view(3, 1, 1) for key in ("mean", "std"))
    pair = [x.to(like.device) for x in pair]
    if size != sizes[0]:
        pair = [F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1) for x in pair]
    inputs = [((x - mean) / std).to(like.dtype) for x in pair]
    training = model.training
    dense = model.eval().forward_tiled(*inputs, **tiling).float().cpu()
    model.train(training)
    channels = model.value_channels
    if size != sizes[0]:
        dense = F.interpolate(dense, sizes[0], mode="bilinear", align_corners=False)
        for channel, axis in zip(range(channels), (1, 0)):  # x, y
            dense[:, channel] *= sizes[0][axis] / size[axis]
    values = dense[0, :channels].numpy()
    confidence = dense[0, channels].numpy() if dense.shape[1] > channels else None
    if channels == 1:
        return StereoPrediction(values[0], confidence)
    return FlowPrediction(np.ascontiguousarray(np.moveaxis(values, 0, -1)), confidence)
