"""Photos of any size as a pointmap model takes them, and where each of its pixels lies in the photo."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from zoo.errors import ImageError
from zoo.photos import read_image, to_rgb

_STRIP = 4  # times the model's longer side, over which a strip of a photo is refused


class PhotoFit(NamedTuple):
    """How a photo was made to fit: resized by `scale`, then cut to `height` x `width` pixels from `top` and `left` on.

    scale is the resized photo's width over the photo's own, and its height over the photo's within half a pixel.
    """

    scale: float
    top: int
    left: int
    height: int
    width: int

    def pixels(self) -> np.ndarray:
        """Where each pixel's center lies in the photo, as x, y: float32 (height, width, 2)."""
        y, x = np.mgrid[: self.height, : self.width] + 0.5
        return (np.stack([x + self.left, y + self.top], axis=-1) / self.scale).astype(np.float32)


def fit_photo(
    photo: str | Path | Image.Image | np.ndarray, size: tuple[int, int], patch_size: int
) -> tuple[np.ndarray, PhotoFit]:
    """A photo as uint8 (H, W, 3) of a size that patches fill, and how it was made to fit.

    photo: a file, an image of PIL, or uint8 (h, w, 3). size: the model's. Where it is a square, the photo's middle
    square is taken; else the photo, in its own shape and orientation, with the longer side that of the model, and as
    little cut off at its edges as patches take. A strip is enlarged until it is a patch wide.

    Raises ImageError (a ValueError) for a file that can't be read, another array, and a photo too narrow for a patch.
    """
    image = _open(photo)
    if size[0] == size[1]:
        scale = size[0] / min(image.size)
        height, width = size
    else:
        scale = max(max(size) / max(image.size), patch_size / min(image.size))  # a strip is a patch wide at least
        height, width = (round(side * scale) // patch_size * patch_size for side in (image.height, image.width))
    if max(height, width) > _STRIP * max(size):
        raise ImageError(
            f"A photo of {image.height}x{image.width} pixels is too narrow for this model; crop it to a fuller shape."
        )
    whole = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    scale = whole[0] / image.width
    resized = image.resize(whole, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    array = np.asarray(resized.crop((left, top, left + width, top + height)))
    return array, PhotoFit(scale, top, left, height, width)


def _open(photo: str | Path | Image.Image | np.ndarray) -> Image.Image:
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
            raise ImageError(f"A photo is uint8 (height, width, 3), not {photo.dtype} {photo.shape}; convert it.")
        return Image.fromarray(photo)
    if isinstance(photo, Image.Image):
        return Image.fromarray(to_rgb(photo))
    return Image.fromarray(read_image(photo))
