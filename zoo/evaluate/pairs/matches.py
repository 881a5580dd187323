"""Which patches of two views are matched, by an encoder's tokens or by cross-attention, and what is true."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.evaluate.pairs.sets import MASK_SEED, Pairs
from zoo.layers.masking import take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.models.croco import PairModel


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
