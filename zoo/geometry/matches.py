"""Reciprocal nearest neighbors between two sets of points or descriptors, block by block: no N x M matrix."""

from __future__ import annotations

import torch
from torch import Tensor

_ENTRIES = 1 << 24  # of a block of the table of all pairs: 64 MB


def reciprocal_matches(
    a: Tensor, b: Tensor, descriptors: bool = False, entries: int = _ENTRIES
) -> tuple[Tensor, Tensor]:
    """Places i in a (N, C) and j in b (M, C) that are each other's nearest: two tensors (K,), i ascending.

    Nearest is the smallest distance, or with `descriptors` (unit vectors) the largest product. entries: how many pairs
    are compared at a time, which bounds the memory. Rows that aren't finite match nothing.
    """
    where_a, where_b = (x.isfinite().all(1).nonzero()[:, 0] for x in (a, b))
    a, b = a[where_a].float(), b[where_b].float()
    empty = where_a[:0]
    if not len(a) or not len(b):
        return empty, empty
    if not descriptors:  # |x - y|^2 in terms of products: a factor of 1/2 and the row's own |x|^2 change no order
        middle = a.mean(0)  # the nearer to zero, the finer the products
        a, b = a - middle, b - middle
    norm_a, norm_b = (0.5 * x.square().sum(1) for x in (a, b))
    nearest = torch.empty(len(a), dtype=torch.long, device=a.device)  # in b
    best = torch.full((len(b),), -torch.inf, device=a.device)
    back = torch.zeros(len(b), dtype=torch.long, device=a.device)  # in a
    rows = max(1, entries // len(b))
    for start in range(0, len(a), rows):
        block = slice(start, start + rows)
        likeness = a[block] @ b.T
        if not descriptors:
            likeness -= norm_b
        nearest[block] = likeness.argmax(1)
        if not descriptors:
            likeness -= norm_a[block, None]
        score, row = likeness.max(0)
        better = score > best
        best[better], back[better] = score[better], row[better] + start
    i = torch.arange(len(a), device=a.device)
    mutual = back[nearest] == i
    return where_a[i[mutual]], where_b[nearest[mutual]]


def match_pixels(
    map1: Tensor,
    map2: Tensor,
    weights1: Tensor | None = None,
    weights2: Tensor | None = None,
    descriptors: bool = False,
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Pixels of two images that show the same point: their centers as x, y, two tensors (K, 2).

    map1 (H1, W1, C), map2 (H2, W2, C): points in one frame, or descriptors. weights (H, W): pixels of weight 0 are left
    out. stride: take every so many rows and columns only; time goes with its fourth power.
    """
    centers, rows = [], []
    for values, weights in ((map1, weights1), (map2, weights2)):
        height, width, _ = values.shape
        start = stride // 2
        y, x = torch.meshgrid(
            torch.arange(start, height, stride, device=values.device),
            torch.arange(start, width, stride, device=values.device),
            indexing="ij",
        )
        y, x = y.flatten(), x.flatten()
        if weights is not None:
            kept = weights[y, x] > 0
            y, x = y[kept], x[kept]
        rows.append(values[y, x])
        centers.append(torch.stack((x, y), dim=1) + 0.5)
    i, j = reciprocal_matches(rows[0], rows[1], descriptors)
    return centers[0][i], centers[1][j]
