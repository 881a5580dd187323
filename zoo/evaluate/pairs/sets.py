"""The pairs that a two-image model is evaluated on: held-out scenes, and crops of a stereo photo."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.demo import stereo_pair
from zoo.errors import DataError
from zoo.layers.masking import random_mask
from zoo.models.croco import PairModel
from zoo.scenes import SceneConfig, ScenePairs

HELD_OUT_SEED = 1_000_003  # no recipe trains with it, and a scene is a function of (seed, index) alone
MASK_SEED = 0
BATCH = 25  # pairs at a time
PHOTO_SCALES = (1.0, 1.25, 1.5, 1.75, 2.0)  # median disparity of the whole photo, in patches


class Pairs(NamedTuple):
    """What is evaluated; everything random is in here, so all that follows is a function of it and the model.

    image1, image2: (P, 3, H, W), two views of a place, normalized for the model.
    wrong: (P, 3, H, W), a view of another place.
    flow: (P, 2, H, W) in pixels (x, y): where what image 1 shows lies in image 2, minus where it lies in image 1;
        NaN where that is unknown.
    covisible: (P, H, W) bool: image 2 shows it too.
    mask: (P, N) bool, True = hidden, the same number in each row.
    order: (P, N), a permutation of the patches.
    """

    image1: Tensor
    image2: Tensor
    wrong: Tensor
    flow: Tensor
    covisible: Tensor
    mask: Tensor
    order: Tensor


def make_pairs(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    flow: np.ndarray,
    covisible: np.ndarray,
    model: PairModel,
    mask_ratio: float,
) -> Pairs:
    """uint8 images 1, 2 and wrong (P, H, W, 3), flow (P, H, W, 2), covisible (P, H, W) -> `Pairs` for the model.

    Masks and permutations are drawn with `MASK_SEED`.
    """
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    image1, image2, wrong = ((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / std for x in images)
    count, height, width = covisible.shape
    patches = (height // model.patch_size) * (width // model.patch_size)
    generator = torch.Generator().manual_seed(MASK_SEED)
    return Pairs(
        image1,
        image2,
        wrong,
        torch.from_numpy(flow).permute(0, 3, 1, 2),
        torch.from_numpy(covisible),
        random_mask(count, patches, mask_ratio, generator),
        torch.rand(count, patches, generator=generator).argsort(dim=1),
    )


def scene_pairs(config: SceneConfig, seed: int, count: int, model: PairModel, mask_ratio: float) -> Pairs:
    """The first `count` scenes of the sequence `seed`; the wrong view of each is the next one's image 2."""
    source = ScenePairs(config, seed, count, ("flow", "covisible"))
    samples = [source[i] for i in range(count)]
    image1, image2, flow, covisible = (
        np.stack([sample[key] for sample in samples]) for key in ("image1", "image2", "flow", "covisible")
    )
    return make_pairs((image1, image2, np.roll(image2, -1, axis=0)), flow, covisible, model, mask_ratio)


def photo_pairs(size: tuple[int, int], model: PairModel, mask_ratio: float) -> Pairs:
    """Crops of `size` (height, width) from the demo's stereo pair, Middlebury's motorcycle.

    Both crops are from the same place of the left and of the right photo, so the displacement is the disparity;
    the photos are scaled so that the crop's median disparity is one to two patches, other crops are left out.
    The wrong view is the farthest crop of the same right photo, which has no pixel in common with image 2. Crops of
    different places do overlap, hence their number says little about how sure the means are. Not co-visible are
    also the pixels whose disparity is unknown, 8 % of them.

    Raises DataError (a ValueError) without scikit-image's photos, and when no crop of this size fits.
    """
    left, right, disparity = stereo_pair()
    patch, (height, width) = model.patch_size, size
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for target in PHOTO_SCALES:
        scale = target * patch / np.median(disparity[np.isfinite(disparity)])
        shape = round(left.shape[1] * scale), round(left.shape[0] * scale)  # PIL's order: width, height
        photo1, photo2 = (np.asarray(Image.fromarray(x).resize(shape, Image.Resampling.BICUBIC)) for x in (left, right))
        shifts = np.asarray(Image.fromarray(disparity).resize(shape, Image.Resampling.NEAREST)) * np.float32(scale)
        seen = _seen_by_right(shifts)
        rows = range(0, shape[1] - height + 1, height // 4)
        columns = range(0, shape[0] - width + 1, width // 4)
        corners = np.array([(top, x) for top in rows for x in columns]).reshape(-1, 2)
        for top, x in corners:
            window = (slice(top, top + height), slice(x, x + width))
            known = np.isfinite(shifts[window])
            away = np.abs(corners - (top, x))
            apart = corners[(away[:, 0] >= height) | (away[:, 1] >= width)]
            if len(apart) == 0 or known.mean() < 0.5 or not 1 <= np.median(shifts[window][known]) / patch <= 2:
                continue
            far_top, far_x = apart[np.hypot(*(apart - (top, x)).T).argmax()]
            flow_x = np.where(known, -shifts[window], np.nan).astype(np.float32)
            inside = np.arange(width) + 0.5 + flow_x > 0  # false for unknown ones; disparities are positive
            parts["image1"].append(photo1[window])
            parts["image2"].append(photo2[window])
            parts["wrong"].append(photo2[far_top : far_top + height, far_x : far_x + width])
            parts["flow"].append(np.stack([flow_x, np.where(known, np.float32(0), flow_x)], axis=-1))
            parts["covisible"].append(inside & seen[window])
    if not parts:
        raise DataError(f"The photo pair is too small for crops of {height}x{width} pixels; evaluate a smaller model.")
    image1, image2, wrong, flow, covisible = (np.stack(part) for part in parts.values())
    return make_pairs((image1, image2, wrong), flow, covisible, model, mask_ratio)


def _seen_by_right(disparity: np.ndarray) -> np.ndarray:
    """Which pixels of the left photo the right one shows too: bool (H, W), from disparities (H, W), inf = unknown.

    A pixel is hidden if another one, nearer by more than a pixel of disparity, lands at the same place.
    """
    rows, columns = np.nonzero(np.isfinite(disparity))
    shift = disparity[rows, columns]
    landing = np.rint(columns - shift).astype(int)
    inside = landing >= 0
    rows, columns, shift, landing = rows[inside], columns[inside], shift[inside], landing[inside]
    nearest = np.zeros_like(disparity)
    np.maximum.at(nearest, (rows, landing), shift)
    seen = np.zeros(disparity.shape, bool)
    seen[rows, columns] = shift >= nearest[rows, landing] - 1
    return seen
