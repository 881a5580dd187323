"""The user's textures: images of a folder, put on surfaces."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

from zoo.errors import DataError, ImageError

IMAGE_SIDE = 256  # texels of a user's texture at its finest level
IMAGE_LEVELS = 8  # 256 ... 2 texels
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

SKIMAGE = "scikit-image"
"""Instead of a folder: the photos that come with that package and are free for any use."""
# by the docstrings of skimage.data: CC0, but for the astronaut and the rocket, in the public domain
_SKIMAGE_PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg"),
)


@lru_cache(maxsize=8)
def texture_files(folder: str) -> tuple[Path, ...]:
    """The images under `folder`, in an order that doesn't depend on the file system; or `SKIMAGE`'s.

    Raises:
        DataError: the folder doesn't exist or has none; scikit-image isn't there.
    """
    if folder == SKIMAGE:
        spec = importlib.util.find_spec("skimage")
        if spec is None or spec.origin is None:
            raise DataError("scikit-image's photos are not there. Install it with pip install 'pretext-zoo[demo]'.")
        return tuple(Path(spec.origin).parent / "data" / name for name in _SKIMAGE_PHOTOS)
    named = (path for path in Path(folder).rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    files = tuple(sorted(path for path in named if path.is_file()))
    if not files:
        suffixes = ", ".join(sorted(_IMAGE_SUFFIXES))
        raise DataError(
            f"The textures folder {folder!r} has no readable images or doesn't exist. "
            f"Name a folder with image files ({suffixes}), or leave textures unset."
        )
    return files


@lru_cache(maxsize=256)
def texture_levels(path: Path) -> tuple[np.ndarray, ...]:
    """The image at `path` as squares of 256, 128 ... 2 texels a side: uint8 (side, side, 3) each.

    Raises:
        DataError: it can't be read.
    """
    from PIL import Image  # only users' textures need it

    from zoo.photos import read_image

    try:
        image = Image.fromarray(read_image(path))
    except ImageError as error:
        raise DataError(f"The texture {path} can't be read as an image. Remove it or save it anew.") from error
    sides = (IMAGE_SIDE >> level for level in range(IMAGE_LEVELS))
    return tuple(np.asarray(image.resize((side, side), Image.Resampling.BOX)) for side in sides)


def put_images(
    folder: str, image: np.ndarray, u: np.ndarray, v: np.ndarray, blur: np.ndarray, colors: np.ndarray
) -> None:
    """Overwrites `colors` (3, V, N) where `image` (V, N) isn't -1 by that image of `folder`.

    `u`, `v` (V, N) are in cells. An image spans 8 of them, i.e. about 4 of the dominant wavelengths, and
    repeats mirrored, without a seam. It is read between texels, at the level whose texels are about as large
    as `blur` (V, N) in cells.
    """
    files = texture_files(folder)
    level = np.clip(np.log2(blur * (IMAGE_SIDE / 8)) + 0.5, 0, IMAGE_LEVELS - 1).astype(np.int32)
    fold_u, fold_v = (1 - np.abs(1 - (coordinate / 8) % 2) for coordinate in (u, v))  # 0..1
    for index in np.unique(image[image >= 0]):
        levels = texture_levels(files[index])
        for depth in np.unique(level[image == index]):
            where = (image == index) & (level == depth)
            colors[:, where] = _bilinear(levels[depth], fold_u[where], fold_v[where])


def _bilinear(texels: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """RGB (3, N) in 0..1 of a square uint8 image (side, side, 3) at `u`, `v` (N,) in 0..1."""
    last = len(texels) - 1
    x, y = u * last, v * last
    left, top = np.minimum(x.astype(np.int32), last - 1), np.minimum(y.astype(np.int32), last - 1)
    right, low = x - left, y - top
    upper = texels[top, left].T * (1 - right) + texels[top, left + 1].T * right
    lower = texels[top + 1, left].T * (1 - right) + texels[top + 1, left + 1].T * right
    return (upper * (1 - low) + lower * low) / 255
