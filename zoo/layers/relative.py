"""Relative-position bias: a learned number for each offset between two patches and each head, added to attention.

What depends on the grid alone (which row of the table an offset has, how a table is brought to another grid)
is computed once and shared by all blocks and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import gen_relative_position_index, resize_rel_pos_bias_table
from torch import Tensor, nn

from zoo.layers.attention import SelfAttention

Grid = tuple[int, int]  # rows, columns of patches
_T = TypeVar("_T")


class Relative(NamedTuple):
    """How a table's bias is read on one grid.

    index: the table's row for each query and key, (N, N), or (B, n, n) where every sample has its own patches.
    resample: two matrices, of rows and of columns, that bring a table to the grid, if it was made for another.
    """

    index: Tensor
    resample: tuple[Tensor, Tensor] | None = None

    def at(self, visible: Tensor) -> Relative:
        """The same of each sample's patches `visible` (B, n) alone."""
        return self._replace(index=self.index[visible.unsqueeze(2), visible.unsqueeze(1)])


def num_offsets(grid: Grid) -> int:
    """How many offsets two patches of a grid can have, that is the rows of its table."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def relative(grid: Grid, table_grid: Grid, device: torch.device) -> Relative:
    """How a table made for `table_grid` is read on `grid`."""
    index = relative_index(*grid, device)
    return Relative(index, None if grid == table_grid else _resampling(table_grid, grid, device))


def _once_a_grid(make: Callable[..., _T]) -> Callable[..., _T]:
    """Remember results. While a graph is traced they become its constants; a graph's own tensors are not kept."""
    remembered = lru_cache(maxsize=8)(make)

    @torch.compiler.assume_constant_result
    @wraps(make)
    def get(*args: Any) -> _T:
        if torch.compiler.is_compiling():
            return make(*args)
        with torch.inference_mode(False):  # a later training step may want it too
            return remembered(*args)

    return get


@_once_a_grid
def relative_index(rows: int, columns: int, device: torch.device) -> Tensor:
    """(N, N): (dy + rows - 1) * (2 * columns - 1) + dx + columns - 1, with dy, dx = query minus key."""
    return gen_relative_position_index((rows, columns), device=device)


@_once_a_grid
def _resampling(old: Grid, new: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """timm's resampling of bias tables, linear between unevenly spaced offsets, as a matrix for each axis.

    (2 * new rows - 1, 2 * old rows - 1) and the same of columns. timm resamples values; what it makes of the unit
    vectors of an axis is the axis's matrix.
    """
    rows, columns = (2 * side - 1 for side in old)
    units_of_rows = torch.eye(rows).repeat_interleave(columns, 0)  # as tables: offsets, "heads"
    units_of_columns = torch.eye(columns).repeat(rows, 1)
    units = torch.cat((units_of_rows, units_of_columns), dim=1)
    resampled = resize_rel_pos_bias_table(units, new, (num_offsets(new), units.shape[1]), old)
    resampled = resampled.unflatten(0, (2 * new[0] - 1, 2 * new[1] - 1))
    return resampled[:, 0, :rows].contiguous().to(device), resampled[0, :, rows:].contiguous().to(device)


def resample_bias_table(table: Tensor, resample: tuple[Tensor, Tensor]) -> Tensor:
    """A table (offsets, heads) brought to another grid by the matrices of `Relative.resample`."""
    rows, columns = (matrix.to(table.dtype) for matrix in resample)
    maps = table.unflatten(0, (rows.shape[1], columns.shape[1]))  # old rows, old columns, heads
    return torch.einsum("yr,xc,rch->yxh", rows, columns, maps).flatten(0, 1)


class RelativeAttention(SelfAttention):
    """Self-attention with an optional relative-position bias; `grid`: the one that the table is made for."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        grid: Grid | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop, device, dtype)
        self.bias_table = None
        if grid is not None:
            self.bias_table = nn.Parameter(torch.empty(num_offsets(grid), num_heads, device=device, dtype=dtype))

    def forward(self, x: Tensor, relative: Relative | None = None) -> Tensor:  # type: ignore[override]
        """x (B, N, C) -> B, N, C."""
        if relative is None or self.bias_table is None:
            return super().forward(x)
        return super().forward(x, bias=self.bias(relative))

    def bias(self, relative: Relative) -> Tensor:
        """(heads, N, N), or (B, heads, n, n) where every sample has its own patches."""
        assert self.bias_table is not None
        table = self.bias_table
        if relative.resample is not None:
            table = resample_bias_table(table, relative.resample)
        index = relative.index
        # heads first, so that the kernels get the bias as they want it, without a copy
        bias = table.T.index_select(1, index.flatten()).unflatten(1, index.shape)
        return bias if index.ndim == 2 else bias.transpose(0, 1)
