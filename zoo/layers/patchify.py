"""Images as sequences of flattened patches, and back; the pixel order is the masked families' common one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """B, C, H, W -> B, N, patch * patch * C: patches row-major, pixels inside as (row, column, channel)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify` for a grid of (rows, columns) patches."""
    h, w = grid
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch's mean and deviation, (B, N, 1) both; the variance is unbiased, 1e-6 inside the root (MAE)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def normalize_patches(patches: Tensor) -> Tensor:
    """Patches with their own mean and deviation taken out: the target that the published recipes predict."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def patch_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution (D, C, k, k) whose stride is its kernel's, over channels-last maps ..., H, W, C ->
    ..., H / k, W / k, D."""
    k = weight.shape[3]
    x = x.unflatten(-2, (-1, k)).unflatten(-4, (-1, k)).transpose(-4, -3)  # ..., H / k, W / k, k, k, C
    return F.linear(x.flatten(-3), weight.permute(0, 2, 3, 1).flatten(1), bias)


def _normalize_channels(patches: Tensor, channels: int) -> Tensor:
    """Each channel of a patch with its own mean and deviation taken out, so that color tells nothing."""
    return normalize_patches(patches.unflatten(-1, (-1, channels)).mT).mT.flatten(-2)


def _normalize_gray(patches: Tensor, channels: int) -> Tensor:
    """The mean of a patch's channels, normalized, in place of each of them."""
    gray = patches.unflatten(-1, (-1, channels)).mean(-1)
    return normalize_patches(gray).repeat_interleave(channels, dim=-1)


TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "pixels": lambda patches, channels: patches,
    "normalized": lambda patches, channels: normalize_patches(patches),
    "per_channel": _normalize_channels,
    "gray": _normalize_gray,
}
"""What a model may be asked to predict of patches (B, N, patch * patch * C), by name."""
