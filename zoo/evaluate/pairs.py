"""How much a two-image model takes from its second image: losses, simple baselines, matches, and a verdict.

A low completion loss deceives: colors alone, or one shift of the whole second image, explain much of it. So the
model is set against predictions that know only so much, on held-out procedural scenes and on real photos.

    zoo eval pairs croco_nano_patch8_64_dec128d4 --output evaluation.json
    zoo eval pairs runs/croco_nano --picture completions.png     # a run, also one still going

Every loss is CroCo's: the squared error of a hidden patch normalized by its own mean and deviation, averaged over
the hidden patches. It is split into color (the part of the error that is its per-channel mean over the patch's
pixels) and structure (the rest). Below, P are pairs, N patches of an image, n of them hidden, Q pixels of a patch.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.demo import stereo_pair
from zoo.errors import DataError, RecipeError, TrainingError
from zoo.layers.masking import random_mask, split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patch_statistics, patchify, unpatchify
from zoo.layers.rope import apply_rope
from zoo.lookup import find_variant
from zoo.models import fetch
from zoo.models.croco import CrossBlock, PairModel
from zoo.scenes.render import SceneConfig, ScenePairs
from zoo.train.build import make_model
from zoo.train.data.sources import make_source
from zoo.train.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT_SEED = 1_000_003  # no recipe trains with it, and a scene is a function of (seed, index) alone
MASK_SEED = 0
BATCH = 25  # pairs at a time
BIN_EDGES = (4, 7, 10)  # pixels of displacement between the bins, in images 64 pixels wide
PHOTO_SCALES = (1.0, 1.25, 1.5, 1.75, 2.0)  # median disparity of the whole photo, in patches


# --- The pairs ----------------------------------------------------------------------------------------------


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
    source = ScenePairs(config, seed, count, geometry=True)
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


# --- Predictions that know only so much ---------------------------------------------------------------------


def best_shift(image2: Tensor, target: Tensor, index: Tensor, patch_size: int, reach: int) -> Tensor:
    """The one displacement (dx, dy) in whole pixels of each pair that fits some patches of image 1 best: (P, 2).

    image2: (P, 3, H, W). target: (P, n, Q * 3), image 1's patches `index` (P, n), normalized. All displacements
    up to `reach` in x and y are tried; image 2 goes on beyond its border with the border's pixels.
    """
    count, channels, _, width = image2.shape
    span, columns = patch_size + 2 * reach, width // patch_size
    padded = F.pad(image2, [reach] * 4, mode="replicate")
    regions = padded.unfold(2, span, patch_size).unfold(3, span, patch_size).permute(0, 2, 3, 1, 4, 5)
    batch = torch.arange(count)[:, None]
    regions = regions[batch, index // columns, index % columns].flatten(0, 1)  # P * n, 3, span, span
    kernels = target.flatten(0, 1).unflatten(1, (patch_size, patch_size, channels)).permute(0, 3, 1, 2)
    # The squared error of a normalized window w is |w|^2 - 2 w.t + |t|^2, and t has zero mean, so neither the
    # windows themselves nor their means are needed.
    dot = F.conv2d(regions.flatten(0, 1)[None], kernels.contiguous(), groups=len(kernels))[0]
    mean = F.avg_pool2d(regions.mean(1), patch_size, stride=1)
    variance = (F.avg_pool2d(regions.square().mean(1), patch_size, stride=1) - mean.square()).clamp(min=0)
    pixels = kernels[0].numel()
    std = (variance * pixels / (pixels - 1) + 1e-6).sqrt()
    error = pixels * variance / std.square() - 2 * dot / std
    best = error.unflatten(0, (count, -1)).sum(1).flatten(1).argmin(1)
    side = 2 * reach + 1
    return torch.stack((best % side, best // side), dim=1) - reach


def shift_image(image: Tensor, shift: Tensor) -> Tensor:
    """image (P, C, H, W) read at (x, y) + shift (P, 2), whole pixels; beyond its border its border's pixels."""
    height, width = image.shape[-2:]
    x = (torch.arange(width) + shift[:, :1]).clamp(0, width - 1)
    y = (torch.arange(height) + shift[:, 1:]).clamp(0, height - 1)
    rows = image.gather(2, y[:, None, :, None].expand_as(image))
    return rows.gather(3, x[:, None, None, :].expand_as(image))


def warp_image(image2: Tensor, flow: Tensor, covisible: Tensor, patch_size: int) -> Tensor:
    """What the true geometry alone can tell of image 1: image 2 (P, C, H, W) read, bilinearly, at the true flow.

    Pixels that image 2 does not show are given the mean color of their patch's other ones (zero in patches without
    any), so that they neither help nor harm: image 2 holds nothing on them, and what hides them there would mislead.
    """
    height, width = image2.shape[-2:]
    flow = flow.nan_to_num(0.0)
    x = (torch.arange(width) + 0.5 + flow[:, 0]) * 2 / width - 1
    y = (torch.arange(height)[:, None] + 0.5 + flow[:, 1]) * 2 / height - 1
    grid = torch.stack((x, y), dim=-1)
    warped = F.grid_sample(image2, grid, padding_mode="border", align_corners=False)
    patches = patchify(warped, patch_size).unflatten(2, (-1, image2.shape[1]))  # P, N, Q, C
    seen = patchify(covisible[:, None].float(), patch_size).unsqueeze(-1)  # P, N, Q, 1
    mean = (patches * seen).sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(min=1)
    patches = torch.where(seen.bool(), patches, mean)
    return unpatchify(patches.flatten(2), patch_size, (height // patch_size, width // patch_size))


def baseline_predictions(pairs: Pairs, target: Tensor, visible: Tensor, index: Tensor, patch_size: int) -> dict:
    """Predictions (P, n, Q * 3) of the hidden patches `index` (P, n) by no model, normalized by patch.

    target: (P, N, Q * 3), all of image 1's patches, normalized, of which the `visible` (P, N - n) may be looked at.
    """
    reach = round(pairs.image2.shape[-1] / 4)  # the scenes' median displacements are a fifth of the width at most
    shift = best_shift(pairs.image2, take_tokens(target, visible), visible, patch_size, reach)

    def patches(image: Tensor) -> Tensor:
        return normalize_patches(take_tokens(patchify(image, patch_size), index))

    return dict(
        zeros=torch.zeros_like(take_tokens(target, index)),
        copy=patches(pairs.image2),
        global_shift=patches(shift_image(pairs.image2, shift)),
        oracle=patches(warp_image(pairs.image2, pairs.flow, pairs.covisible, patch_size)),
    )


def model_predictions(model: PairModel, pairs: Pairs, hidden: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The model's predictions (P, n, Q * 3) with several images as its reference, normalized by patch, and the
    cross-attention (P, N, N) of every decoder block, averaged over the heads, with the right one."""
    height, width = pairs.image2.shape[-2:]
    grid = height // model.patch_size, width // model.patch_size
    shuffled = take_tokens(patchify(pairs.image2, model.patch_size), pairs.order)

    def predict(reference: Tensor) -> Tensor:
        prediction, index = model.predict(pairs.image1, reference, pairs.mask, hidden)
        if model.norm_target:
            return prediction
        mean, std = patch_statistics(take_tokens(patchify(pairs.image1, model.patch_size), index))
        return (prediction - mean) / std

    with recorded_attention(model) as attention:
        right = predict(pairs.image2)
    predictions = dict(
        right=right,
        wrong=predict(pairs.wrong),
        self=predict(pairs.image1),
        shuffled=predict(unpatchify(shuffled, model.patch_size, grid)),
    )
    return predictions, attention


@contextmanager
def recorded_attention(model: PairModel) -> Iterator[list[Tensor]]:
    """While open, each cross-attention of the decoder adds its weights (P, N1, N2), averaged over the heads.

    They are computed again, since the fused kernels don't give them. A "cat" decoder has no cross-attention.
    """
    maps: list[Tensor] = []

    def record(module: Any, args: tuple, output: Tensor) -> None:
        x, memory, rope, memory_rope = args
        q, k = (
            tokens.unflatten(2, (module.num_heads, module.head_dim)).transpose(1, 2)
            for tokens in (module.q_proj(x), module.k_proj(memory))
        )
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, memory_rope)
        maps.append((q @ k.transpose(-2, -1) * module.head_dim**-0.5).softmax(dim=-1).mean(dim=1))

    blocks = [block for block in model.decoder.blocks if isinstance(block, CrossBlock)]
    handles = [block.cross_attn.register_forward_hook(record) for block in blocks]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


# --- Losses -------------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """All that the losses of a prediction need, for every scaling of it: means over a patch's values of
    prediction * prediction, prediction * target and target * target; each (P, n, 2), color and structure."""

    pp: Tensor
    pt: Tensor
    tt: Tensor

    def error(self, scale: Tensor | float = 1.0) -> Tensor:
        """Squared error (P, n, 2) of `scale` * prediction; scale: a number, or (2,) for color and structure."""
        return self.pp * scale**2 - 2 * self.pt * scale + self.tt

    def one_scalar(self) -> Tensor:
        """The scale (2,), the same twice, of least error over the whole set."""
        return (self.pt.sum() / self.pp.sum()).expand(2)

    def two_scalars(self) -> Tensor:
        """The scales (2,) of color and structure of least error over the whole set."""
        return self.pt.sum((0, 1)) / self.pp.sum((0, 1))


def moments(prediction: Tensor, target: Tensor, channels: int = 3) -> Moments:
    """(P, n, Q * C) both -> their `Moments`; the colors are orthogonal to the rest, so the parts add up."""
    # float64, because a small error is the difference of large moments
    prediction, target = (x.double().unflatten(2, (-1, channels)) for x in (prediction, target))

    def parts(a: Tensor, b: Tensor) -> Tensor:
        color = (a.mean(2) * b.mean(2)).mean(-1)
        return torch.stack((color, (a * b).mean((2, 3)) - color), dim=-1)

    return Moments(parts(prediction, prediction), parts(prediction, target), parts(target, target))


def loss_parts(error: Tensor) -> dict[str, float]:
    """Squared errors (..., 2) -> the mean loss and its parts."""
    color, structure = error.flatten(0, -2).mean(0).tolist()
    return dict(loss=color + structure, color=color, structure=structure)


def loss_table(found: dict[str, Moments]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Errors (P, n, 2) of every row of the table, from the moments of the predictions; and the fitted scalars.

    Scalars are fitted, by least squares, over the whole set that they are then measured on.
    """
    errors = {name: found[name].error() for name in ("right", "wrong", "zeros", "copy")}
    copy, shift = found["copy"], found["global_shift"]
    only_color = torch.tensor([1.0, 0.0], dtype=torch.float64)
    scalars = dict(
        copy_one_scalar=copy.one_scalar(),
        color_copy_one_scalar=copy.two_scalars() * only_color,
        global_shift_one_scalar=shift.one_scalar(),
        global_shift_two_scalars=shift.two_scalars(),
    )
    errors["copy_one_scalar"] = copy.error(scalars["copy_one_scalar"])
    errors["color_copy"] = copy.error(only_color)
    errors["color_copy_one_scalar"] = copy.error(scalars["color_copy_one_scalar"])
    errors["global_shift"] = shift.error()
    for name in ("global_shift_one_scalar", "global_shift_two_scalars"):
        errors[name] = shift.error(scalars[name])
    errors |= {name: found[name].error() for name in ("self", "shuffled", "oracle")}
    return errors, {name: scale.tolist() for name, scale in scalars.items()}


def displacement_bins(width: int) -> dict[str, tuple[float, float]]:
    """Names and ranges, in pixels, of the bins of displacement in images `width` pixels wide."""
    edges = [edge * width / 64 for edge in BIN_EDGES]
    ranges = pairwise([0.0, *edges, math.inf])
    return {f"{low:g}+" if high == math.inf else f"{low:g}-{high:g}": (low, high) for low, high in ranges}


def patch_displacement(flow: Tensor, patch_size: int) -> Tensor:
    """flow (P, 2, H, W) -> the median length of each patch's (P, N), in pixels; NaN where all of it is unknown."""
    return patchify(flow.norm(dim=1, keepdim=True), patch_size).nanmedian(dim=-1).values


# --- Matches ------------------------------------------------------------------------------------------------


def true_matches(pairs: Pairs, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where image 1's patches lie in image 2: centers (N, 2) of all patches and targets (P, N, 2), both in
    pixels (x, y), and which targets count (P, N) bool: those of patches of which image 2 shows at least half.

    A target is the patch's center plus the median flow of its co-visible pixels.
    """
    height, width = pairs.covisible.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(patch_size / 2, height, patch_size), torch.arange(patch_size / 2, width, patch_size), indexing="ij"
    )
    centers = torch.stack((x.flatten(), y.flatten()), dim=1)
    flow = pairs.flow.masked_fill(~pairs.covisible[:, None], math.nan)
    median = patchify(flow, patch_size).unflatten(2, (-1, 2)).nanmedian(dim=2).values
    counts = patchify(pairs.covisible[:, None].float(), patch_size).mean(2) >= 0.5
    return centers, centers + median, counts


def untrained(model: Any) -> Any:
    """An encoder, or a two-image model, with weights drawn anew: what trained ones start from."""
    with torch.random.fork_rng():
        torch.manual_seed(MASK_SEED)
        fresh = copy.deepcopy(model)
        if isinstance(fresh, PairModel):
            fresh.encoder.init_weights()  # a pair's own draws what is behind it
        fresh.init_weights()
    return fresh


def match_hits(
    encoders: dict[str, Any], pairs: Pairs, index: Tensor, attention: list[Tensor], size: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Whether the best match of image 1's patches `index` (P, n) lies within a patch width of the truth.

    Returns hits (P, n) by name (for "chance" the share of places that would hit), which patches count (P, n), and
    which of those lie more than a patch width (`size`) away, where staying in place misses. Matches are those of
    largest cosine between the tokens of an encoder (by its name; both images whole) or the normalized patches
    ("pixels"), of largest `attention` (P, N, N) with image 1 masked as in training ("attention_0" ...), and
    "same_place".
    """
    centers, targets, counts = true_matches(pairs, size)
    targets, counts = take_tokens(targets, index), counts.gather(1, index)
    similarities = {}
    for name, encoder in encoders.items():
        tokens1, tokens2 = (F.normalize(encoder.forward_tokens(x)[0], dim=-1) for x in (pairs.image1, pairs.image2))
        similarities[name] = tokens1 @ tokens2.mT
    pixels1, pixels2 = (normalize_patches(patchify(x, size)) for x in (pairs.image1, pairs.image2))
    similarities["pixels"] = pixels1 @ pixels2.mT
    similarities |= {f"attention_{i}": weights for i, weights in enumerate(attention)}
    own = centers[index]  # P, n, 2
    places = {name: centers[take_tokens(values, index).argmax(-1)] for name, values in similarities.items()}
    places["same_place"] = own
    hits = {name: ((place - targets).norm(dim=-1) <= size).double() for name, place in places.items()}
    hits["chance"] = ((targets[:, :, None] - centers).norm(dim=-1) <= size).double().mean(-1)
    return hits, counts, counts & ((targets - own).norm(dim=-1) > size)


# --- Everything ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(model: PairModel, pairs: Pairs) -> dict[str, Any]:
    """The whole table of a model (in eval mode) on some pairs, as plain numbers; see `evaluate` for the keys."""
    hidden, size = int(pairs.mask[0].sum()), model.patch_size
    encoders = dict(features=model.encoder, untrained_features=untrained(model.encoder))
    found: dict[str, list[Moments]] = defaultdict(list)
    hits: dict[str, list[Tensor]] = defaultdict(list)
    displacements, counted, moved = [], [], []
    for parts in zip(*(x.split(BATCH) for x in pairs)):
        batch = Pairs(*parts)
        visible, index = split_mask(batch.mask, hidden)
        target = normalize_patches(patchify(batch.image1, size))
        predictions, attention = model_predictions(model, batch, hidden)
        predictions |= baseline_predictions(batch, target, visible, index, size)
        for name, prediction in predictions.items():
            found[name].append(moments(prediction, take_tokens(target, index)))
        displacements.append(patch_displacement(batch.flow, size).gather(1, index))
        found_hits, counts, far = match_hits(encoders, batch, index, attention, size)
        for name, hit in found_hits.items():
            hits[name].append(hit)
        counted.append(counts)
        moved.append(far)

    errors, scalars = loss_table({k: Moments(*map(torch.cat, zip(*parts))) for k, parts in found.items()})
    displacement, counts, far = map(torch.cat, (displacements, counted, moved))
    bins = {
        name: (displacement >= low) & (displacement < high)
        for name, (low, high) in displacement_bins(pairs.flow.shape[-1]).items()
    }
    pair_loss = {name: errors[name].sum(-1).mean(-1) for name in ("right", "wrong")}
    return dict(
        pairs=len(pairs.mask),
        hidden_patches=hidden,
        losses={
            name: dict(
                **loss_parts(error),
                by_displacement={key: loss_parts(error[where]) for key, where in bins.items() if where.any()},
            )
            for name, error in errors.items()
        },
        scalars=scalars,
        share_of_patches_by_displacement={key: where.double().mean().item() for key, where in bins.items()},
        share_right_below_wrong=(pair_loss["right"] < pair_loss["wrong"]).double().mean().item(),
        matches=dict(
            patches=int(counts.sum()),
            patches_moved=int(far.sum()),
            within_patch_width={name: torch.cat(hit)[counts].mean().item() for name, hit in hits.items()},
            within_patch_width_moved={name: torch.cat(hit)[far].mean().item() for name, hit in hits.items()}
            if far.any()
            else {},
        ),
    )


def verdict(scenes: dict[str, Any], photos: dict[str, Any]) -> dict[str, Any]:
    """What may be claimed from two of `measure`'s results: each claim's conditions, with their values and bars.

    "Clearly" is read as a tenth, "most" as more than half. Since many patches hardly move, and random features match
    as well, matches must also be better than staying in place, pixels and an untrained encoder. The way of matching is
    the best one on patches that moved, lest an attention that only looks at its own place be taken for matching.
    """
    losses, real = scenes["losses"], photos["losses"]
    right, shift = losses["right"], losses["global_shift_two_scalars"]
    shares = scenes["matches"]["within_patch_width"]
    moved = scenes["matches"]["within_patch_width_moved"]
    ways = [name for name in shares if name == "features" or name.startswith("attention")]
    way = max(ways, key=lambda name: moved.get(name, 0.0))
    trivial = max(shares[name] for name in ("same_place", "pixels", "untrained_features"))
    reference = min(losses["wrong"]["loss"], losses["zeros"]["loss"])
    uses = [
        _condition("right", right["loss"], "<=", 0.70),
        _condition("right, against 0.70 * min(wrong, zeros)", right["loss"], "<=", 0.70 * reference),
        _condition("right, against color copy", right["loss"], "<", losses["color_copy"]["loss"]),
        _condition("share of pairs with right < wrong", scenes["share_right_below_wrong"], ">=", 0.95),
        _condition("photos: right, against 0.9 * wrong", real["right"]["loss"], "<=", 0.9 * real["wrong"]["loss"]),
    ]
    match = [
        _condition("right, against global shift", right["loss"], "<", shift["loss"]),
        _condition("structure, against global shift's", right["structure"], "<", shift["structure"]),
        _condition("self, against 0.9 * right", losses["self"]["loss"], "<=", 0.9 * right["loss"]),
        _condition("matches within a patch width", shares[way], ">", 0.5),
        _condition("matches, against same place, pixels, untrained", shares[way], ">", trivial),
    ]
    uses_reference = all(condition["holds"] for condition in uses)
    return dict(
        uses_reference=dict(holds=uses_reference, conditions=uses),
        matches_views=dict(
            holds=uses_reference and all(condition["holds"] for condition in match), matched_by=way, conditions=match
        ),
    )


def _condition(name: str, value: float, relation: str, bar: float) -> dict[str, Any]:
    holds = {"<": value < bar, "<=": value <= bar, ">": value > bar, ">=": value >= bar}[relation]
    return dict(name=name, value=value, relation=relation, bar=bar, holds=holds)


class Subject(NamedTuple):
    """A model to be evaluated, how it was trained (None: unknown), and the file of its weights."""

    name: str
    model: PairModel
    recipe: Recipe | None
    weights: Path
    sha256: str
    step: int | None

    @property
    def mask_ratio(self) -> float:
        """Share of patches that it is to complete: what its training ended with, or CroCo's."""
        return self.recipe.objective.get("mask_ratio", 0.9) if self.recipe else 0.9

    def scenes(self, seed: int) -> SceneConfig:
        """The kind of scenes that it was trained on, or the renderer's default.

        Raises RecipeError (a ValueError) when it was trained on the very scenes of `seed`.
        """
        if self.recipe is None or self.recipe.data["source"] != "scenes":
            return SceneConfig(image_size=self.model.encoder.patch_embed.img_size)
        if seed == self.recipe.seed:
            raise RecipeError(f"Seed {seed} is the one that this model was trained with; choose another --seed.")
        return make_source(self.recipe.data, seed, "pair").config


def load_subject(model_or_run: str) -> Subject:
    """A pretrained two-image model by its timm name, or the model of a training run by the run's folder.

    A run that is still going is loaded from its last checkpoint.

    Raises UnknownVariantError, RecipeError (ValueErrors) or TrainingError (a RuntimeError).
    """
    folder = Path(model_or_run)
    return _load_run(folder) if folder.is_dir() else _load_pretrained(model_or_run)


def _load_run(folder: Path) -> Subject:
    recipe = load_recipe(folder / "recipe.yaml")
    model = make_model(recipe)
    if not isinstance(model, PairModel):
        raise RecipeError(f"{folder} trains {recipe.model}, which completes no pairs; name a two-image model's run.")
    path, prefix = folder / "model.safetensors", ""
    if not path.exists():
        path, prefix = folder / "checkpoint.safetensors", "objective.model."
    if not path.exists():
        raise TrainingError(f"{folder} has neither weights nor a checkpoint yet; wait for its first checkpoint.")
    data = path.read_bytes()  # once, since a running training replaces the file
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    step = json.loads(about["run"])["step"] if prefix else int(about["steps"])
    tensors = safetensors.torch.load(data)
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return Subject(recipe.model, model.eval(), recipe, path, hashlib.sha256(data).hexdigest(), step)


def _load_pretrained(name: str) -> Subject:
    variant = find_variant(name)
    if variant.form != "binocular":
        raise RecipeError(f"{name} completes no pairs; choose one of `zoo list --form binocular`.")
    recipe = load_recipe(variant.recipe) if variant.recipe else None
    path = fetch(variant.name)
    model: Any = timm.create_model(variant.name, pretrained=True).eval()
    return Subject(variant.name, model, recipe, path, hashlib.sha256(path.read_bytes()).hexdigest(), None)


def evaluate(subject: Subject, count: int, seed: int) -> tuple[dict[str, Any], Pairs, Pairs]:
    """Evaluate on `count` scenes of the sequence `seed` and on the photos; also returns those pairs, to look at.

    The result is plain JSON. `losses` has a row for each of: right (the true second view), wrong (one of another
    place), zeros, copy (image 2's patch at the same place), copy_one_scalar, color_copy (only that patch's color),
    color_copy_one_scalar, global_shift (image 2 shifted by the displacement that fits the visible patches best,
    without and with scalars fitted), self (image 1 as its own reference), shuffled (image 2's patches in disorder),
    oracle (image 2 warped by the true geometry). Bins are of a hidden patch's median true displacement, in pixels.

    Raises RecipeError (a ValueError) when the model was trained on the scenes of `seed`.
    """
    start = time.monotonic()
    model, recipe = subject.model, subject.recipe
    config, mask_ratio = subject.scenes(seed), subject.mask_ratio
    scenes = scene_pairs(config, seed, count, model, mask_ratio)
    photos = photo_pairs((config.height, config.width), model, mask_ratio)
    results = dict(scenes=measure(model, scenes), photos=measure(model, photos))
    settings = dict(
        scene_seed=seed,
        training_seed=recipe.seed if recipe else None,
        mask_seed=MASK_SEED,
        mask_ratio=mask_ratio,
        scene_config=dataclasses.asdict(config),
        photos="Middlebury 2014 motorcycle (scikit-image), overlapping crops",
        torch=torch.__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 1),
    )
    about = dict(name=subject.name, weights=subject.weights.name, sha256=subject.sha256, step=subject.step)
    return dict(model=about, settings=settings, **results, verdict=verdict(**results)), scenes, photos


# --- To look at ---------------------------------------------------------------------------------------------


def print_result(result: dict[str, Any]) -> None:
    """The tables and the verdict, on the terminal."""
    console = Console()
    scenes, photos = result["scenes"], result["photos"]
    step = f", step {result['model']['step']}" if result["model"]["step"] is not None else ""
    bins = list(scenes["share_of_patches_by_displacement"])
    table = Table(
        title=f"{result['model']['name']}{step}: {scenes['pairs']} scenes, {photos['pairs']} photo crops",
        caption=f"right < wrong in {scenes['share_right_below_wrong']:.1%} of the scenes, "
        f"{photos['share_right_below_wrong']:.1%} of the crops",
    )
    for column in ("prediction", "loss", "color", "structure", *(f"{name} px" for name in bins)):
        table.add_column(column, justify="left" if column == "prediction" else "right")
    for column in ("photos", "color", "structure"):
        table.add_column(column, justify="right", style="cyan")
    for name, row in scenes["losses"].items():
        real = photos["losses"][name]
        cells = [row["loss"], row["color"], row["structure"]]
        cells += [row["by_displacement"].get(key, {}).get("loss", math.nan) for key in bins]
        cells += [real["loss"], real["color"], real["structure"]]
        table.add_row(name.replace("_", " "), *(f"{cell:.3f}" for cell in cells))
    console.print(table)

    table = Table(title="Best match within a patch width of the truth, share of co-visible hidden patches")
    for column in ("by", "scenes", "moved farther", "photos", "moved farther"):
        table.add_column(column, justify="left" if column == "by" else "right")
    for name in scenes["matches"]["within_patch_width"]:
        shares = [
            part["matches"][key].get(name, math.nan)
            for part in (scenes, photos)
            for key in ("within_patch_width", "within_patch_width_moved")
        ]
        table.add_row(name.replace("_", " "), *(f"{share:.1%}" for share in shares))
    console.print(table)

    for claim, outcome in result["verdict"].items():
        table = Table(title=f"{claim.replace('_', ' ')}: {'holds' if outcome['holds'] else 'does not hold'}")
        for column in ("condition", "value", "bar", "holds"):
            table.add_column(column, justify="left" if column == "condition" else "right")
        for item in outcome["conditions"]:
            mark = "[green]yes" if item["holds"] else "[red]no"
            table.add_row(item["name"], f"{item['value']:.3f}", f"{item['relation']} {item['bar']:.3f}", mark)
        console.print(table)


def draw_completions(model: PairModel, sets: dict[str, Pairs], rows: int = 4) -> Figure:
    """A picture of completions of pairs spread over each set, with the right and the wrong reference."""
    from matplotlib.figure import Figure

    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    titles = ("image 1", "visible", "image 2", "completion", "a wrong image 2", "completion")
    height = len(sets) * rows
    figure = Figure((9, 1.6 * height), layout="constrained")
    axes = figure.subplots(height, len(titles))
    for place, (name, pairs) in enumerate(sets.items()):
        chosen = torch.arange(rows) * (len(pairs.mask) // rows)
        some = Pairs(*(x[chosen] for x in pairs))
        grid = some.image1.shape[-2] // model.patch_size, some.image1.shape[-1] // model.patch_size
        seen = patchify(some.image1, model.patch_size).masked_fill(some.mask[:, :, None], 0)
        completed = [model.complete(some.image1, x, mask=some.mask).image for x in (some.image2, some.wrong)]
        visible = unpatchify(seen, model.patch_size, grid)
        columns = (some.image1, visible, some.image2, completed[0], some.wrong, completed[1])
        for row in range(rows):
            line = axes[place * rows + row]
            for axis, images, title in zip(line, columns, titles):
                axis.imshow((images[row] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if place == row == 0:
                    axis.set_title(title, fontsize=9)
            line[0].set_ylabel(name, fontsize=9)
    if model.norm_target:
        figure.suptitle(
            "Hidden patches are drawn with their TRUE mean and deviation, so completions look better than they are.",
            fontsize=9,
        )
    return figure
