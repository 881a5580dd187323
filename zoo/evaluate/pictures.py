"""What a two-image model has learned, to look at: completions, attention, matches and features before and after.

"Before" is the same network as it is drawn at first. The scenes are held-out ones, the photos real.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import pictures
from zoo.demo import mutual_matches, stereo_pair
from zoo.errors import RecipeError
from zoo.evaluate.pairs import (
    HELD_OUT_SEED,
    Pairs,
    Subject,
    photo_pairs,
    recorded_attention,
    scene_pairs,
    true_matches,
    untrained,
)
from zoo.layers.masking import split_mask
from zoo.models.croco import CrossBlock, PairModel
from zoo.pictures import Frame, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERY_COLOR, TRUTH_COLOR = "#ff5fd2", "#00c2ff"
LARGE = 4  # times the training's size: the side of the pictures of features, which have a color for each patch


class Example(NamedTuple):
    """A pair of `Pairs` that is shown: its name, and everything as a batch of one."""

    name: str
    pair: Pairs


def draw_learning(subject: Subject, folder: Path) -> list[Path]:
    """Write attention.png, before_after.png, feature_maps.png and pair_matches.png into `folder`.

    Raises RecipeError (a ValueError) for a decoder without cross-attention, DataError (a ValueError) without
    scikit-image's photos.
    """
    if not any(isinstance(block, CrossBlock) for block in subject.model.decoder.blocks):
        raise RecipeError(
            f"{subject.name} has no cross-attention to draw; choose a two-image model with cross-attention blocks, or "
            "`zoo eval pairs --picture` for completions alone."
        )
    model, fresh = subject.model, untrained(subject.model)
    with torch.inference_mode():
        examples = list(choose_examples(subject))
        figures = {
            "before_after.png": draw_completions(fresh, model, examples),
            "attention.png": draw_attention(fresh, model, examples),
            "pair_matches.png": draw_pair_matches(fresh, model, examples),
            "feature_maps.png": draw_features(fresh, model, subject),
        }
    return [pictures.save_figure(figure, folder / name) for name, figure in figures.items()]


def choose_examples(subject: Subject, each: int = 2) -> Iterator[Example]:
    """The first held-out scenes, and photo crops from far apart."""
    config, ratio = subject.scenes(HELD_OUT_SEED), subject.mask_ratio
    scenes = scene_pairs(config, HELD_OUT_SEED, each, subject.model, ratio)
    photos = photo_pairs((config.height, config.width), subject.model, ratio)
    for name, pairs, step in (("scene", scenes, 1), ("photo", photos, len(photos.mask) // each)):
        for i in range(each):
            yield Example(name, Pairs(*(x[i * step : i * step + 1] for x in pairs)))


def draw_completions(fresh: PairModel, model: PairModel, examples: list[Example]) -> Figure:
    """Image 2, what is left of image 1, and image 1 as completed by the untrained and by the trained model."""
    rows = []
    for _, pair in examples:
        truth, reference = (pictures.to_pixels(x, model)[0] for x in (pair.image1, pair.image2))
        seen = pictures.hide(truth[None], pair.mask, model.patch_size)[0]
        before, after = (
            pictures.to_pixels(net.complete(pair.image1, pair.image2, mask=pair.mask).image, model)[0]
            for net in (fresh, model)
        )
        rows.append((reference, seen, before, after, truth))
    names = ("image 2", "what is left of image 1", "completed untrained", "completed trained", "image 1")
    caption = pictures.completion_caption(model) + " So even the untrained network's patches have the right color."
    return pictures.draw_images(rows, names, "", caption, [name for name, _ in examples], panel=2.2)


def draw_attention(fresh: PairModel, model: PairModel, examples: list[Example]) -> Figure:
    """Where one hidden patch of image 1 looks in image 2, in the block of the decoder that looks most closely."""
    rows: list[list[Panel]] = []
    for _, pair in examples:
        size = model.patch_size
        centers, targets, counts = true_matches(pair, size)
        hidden = split_mask(pair.mask, int(pair.mask.sum()))[1][0]
        query = median_way(hidden[counts[0, hidden]], targets[0] - centers)
        patch, truth = (
            _frame(point[query], size, color) for point, color in ((centers, QUERY_COLOR), (targets[0], TRUTH_COLOR))
        )
        image1, image2 = (pictures.to_pixels(x, model)[0] for x in (pair.image1, pair.image2))
        row = [Panel(image1, "one hidden patch of image 1", [patch]), Panel(image2, "its place in image 2", [truth])]
        for net, name in ((fresh, "untrained"), (model, "trained")):
            with recorded_attention(net) as maps:
                net.predict(pair.image1, pair.image2, pair.mask, len(hidden))
            block = sharpest(maps)
            row.append(Panel(glow(image2, maps[block][0, query], size), f"{name}, block {block + 1}", [truth]))
        rows.append(row)
    caption = (
        "Bright: where the patch's token attends, averaged over the heads. Blue: where the patch truly is in image 2. "
        "Of each pair's hidden patches the one with the median displacement is shown."
    )
    return pictures.draw_panels(rows, "", caption, [name for name, _ in examples], panel=2.4)


def _frame(center: Tensor, size: int, color: str) -> Frame:
    left, upper = (center - size / 2).tolist()
    return Frame(left, upper, size, size, color)


def median_way(patches: Tensor, way: Tensor) -> int:
    """Of `patches` (n,) the one whose way (N, 2) is of median length."""
    return int(patches[way[patches].norm(dim=1).median(dim=0).indices])


def sharpest(maps: list[Tensor]) -> int:
    """The block whose attention (1, N, M) has the least entropy."""
    return int(torch.stack([torch.special.entr(weights).sum(-1).mean() for weights in maps]).argmin())


def glow(image: np.ndarray, weights: Tensor, size: int) -> np.ndarray:
    """An image (H, W, 3), pale and gray, under one patch's attention (M,), from black over red to white."""
    from matplotlib import colormaps

    grid = (image.shape[0] // size, image.shape[1] // size)
    coarse = (weights / weights.max()).view(1, 1, *grid)
    heat = F.interpolate(coarse, scale_factor=size, mode="bilinear")[0, 0].numpy()
    gray = image.mean(-1, keepdims=True).repeat(3, -1)
    return np.clip(0.45 * gray + 0.75 * np.array(colormaps["inferno"](heat))[:, :, :3], 0, 1)


def draw_pair_matches(fresh: PairModel, model: PairModel, examples: list[Example]) -> Figure:
    """Matches by the encoder's tokens, before and after training, and by the trained decoder's attention."""
    rows = []
    for _, pair in examples:
        view1, view2 = (pictures.to_pixels(x, model)[0] for x in (pair.image1, pair.image2))
        centers, targets, counts = true_matches(pair, model.patch_size)
        hidden = split_mask(pair.mask, int(pair.mask.sum()))[1][0]
        with recorded_attention(model) as maps:
            model.predict(pair.image1, pair.image2, pair.mask, len(hidden))
        found = {
            f"{name} tokens": mutual_matches(*(net.encoder.forward_features(x)[0] for x in (pair.image1, pair.image2)))
            for net, name in ((fresh, "untrained"), (model, "trained"))
        }
        found["trained decoder"] = hidden, maps[-1][0, hidden].argmax(dim=1)
        row = []
        for name, (first, second) in found.items():
            known = counts[0, first]
            first, second = first[known], second[known]
            right = (centers[second] - targets[0, first]).norm(dim=1) <= model.patch_size
            title = f"{name}: {int(right.sum())} of {len(right)} right"
            row.append(pictures.match_panel(view1, view2, centers[first], centers[second], right, title))
        rows.append(row)
    caption = (
        "Tokens: patches of both images that are each other's nearest by the encoder's tokens. Decoder: where each "
        "hidden patch of image 1, which it has not seen, attends most in its last block. Green: within a patch width "
        "of the truth. Only patches that both images show can be judged."
    )
    return pictures.draw_panels(rows, "", caption, [name for name, _ in examples], panel=3.9)


def draw_features(fresh: PairModel, model: PairModel, subject: Subject) -> Figure:
    """The tokens of a scene and of a photo as colors, the images larger than in training."""
    config = subject.scenes(HELD_OUT_SEED)
    size = (config.height * LARGE, config.width * LARGE)
    scene = scene_pairs(replace(config, image_size=size), HELD_OUT_SEED, 1, model, subject.mask_ratio)
    photos = stereo_pair()
    rows = []
    for views in (
        torch.cat((scene.image1, scene.image2)),
        torch.cat([pictures.to_input(photo, model, size) for photo in (photos.left, photos.right)]),
    ):
        row = [pictures.to_pixels(views, model)[0]]
        for net in (fresh, model):
            tokens = net.encoder.forward_features(views)  # 2, N, D
            colors = pictures.pca_rgb(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            row.append(colors[0].unflatten(0, [side // model.patch_size for side in size]).numpy())
        rows.append(row)
    caption = (
        "Three principal components of the encoder's tokens as red, green and blue, for images of "
        f"{size[0]} x {size[1]} pixels, larger than in training."
    )
    return pictures.draw_images(rows, ("image", "untrained", "trained"), "", caption, ("scene", "photo"), panel=3.2)
