"""Rotary position embedding over two image axes: the first half of a head turns by row, the second by column."""

import torch
from torch import Tensor

from zoo.layers.remember import once_a_grid

Rope = tuple[Tensor, Tensor]
"""cos and signed sin, each (N, head_dim), or (B, 1, N, head_dim) where every sample has its own positions."""


def rope_table(head_dim: int, height: int, width: int, base: float, device: torch.device | None = None) -> Rope:
    """The rotation of every patch of a height x width grid, row-major (CroCo v2, section 3.2).

    In each half of m = head_dim / 2 channels the inverse frequencies are base^(-2k/m), k < m/2, repeated
    twice; channel k turns together with channel k + m/2.
    """
    half = head_dim // 2
    steps = torch.arange(0, half, 2, dtype=torch.float32, device=device)
    freqs = torch.pow(base, -steps / half)  # m / 2
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * freqs
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * freqs
    rows = rows[:, None].expand(height, width, half // 2)
    columns = columns[None].expand(height, width, half // 2)
    cos = torch.cat((rows.cos(), rows.cos(), columns.cos(), columns.cos()), dim=2)
    # the sign of the rotation's lower-left term sits in the table, so that applying it is one multiply-add
    sin = torch.cat((-rows.sin(), rows.sin(), -columns.sin(), columns.sin()), dim=2)
    return cos.flatten(0, 1), sin.flatten(0, 1)


_remembered_rope = once_a_grid(rope_table)


def rope_on(head_dim: int, height: int, width: int, base: float, device: torch.device) -> Rope:
    """`rope_table` of a grid on a device, computed once and shared by all blocks, models and steps."""
    if torch.jit.is_scripting():
        return rope_table(head_dim, height, width, base, device)
    else:
        return _remembered_rope(head_dim, height, width, base, device)


torch.fx.wrap("rope_on")


def gather_rope(rope: Rope, index: Tensor) -> Rope:
    """The rows of `rope` at each sample's patch numbers `index` (B, n): two tensors (B, 1, n, head_dim)."""
    return rope[0][index].unsqueeze(1), rope[1][index].unsqueeze(1)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate queries or keys x (..., N, head_dim); the angles stay in float32 whatever x is."""
    cos, sin = rope
    a, b, c, d = x.chunk(4, dim=-1)  # row halves, column halves
    partner = torch.cat((b, a, d, c), dim=-1)  # each channel's partner in its rotation plane
    return (x * cos).addcmul_(partner, sin).to(x.dtype)  # in place: one large allocation less
