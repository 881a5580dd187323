"""Predictions of hidden patches by no model: they know only so much of the second image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.evaluate.pairs.sets import Pairs
from zoo.layers.masking import take_tokens
from zoo.layers.patchify import normalize_patches, patchify, unpatchify


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
    flow = flow.nan_to_num(0.0, 0.0, 0.0)
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
