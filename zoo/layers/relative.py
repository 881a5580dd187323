"""Relative-position bias: a learned number for each offset between two patches and each head, added to attention.

What depends on grids alone (which offset two patches have, how a table is brought to another grid) is computed once
and shared by all blocks and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import gen_relative_position_index, resize_rel_pos_bias_table, trunc_normal_
from torch import Tensor, nn

from zoo.layers.positions import Grid, GridTable

_T = TypeVar("_T")


class Relative(NamedTuple):
    """How the tables of `RelativeBias` are read on one grid.

    offsets: number of the offset of each query and key, (N, N), or (B, n, n) where every sample has its own patches.
    resample: two matrices, of rows and of columns, that bring a table to the grid, if it was learned on another.
    """

    offsets: Tensor
    resample: tuple[Tensor, Tensor] | None = None

    def at(self, visible: Tensor) -> Relative:
        """The same of each sample's patches `visible` (B, n) alone."""
        return self._replace(offsets=self.offsets[visible.unsqueeze(2), visible.unsqueeze(1)])


class RelativeBias(GridTable):
    """A learned number for each offset between two patches and each head, which attention adds to its logits.

    table: (2 * rows - 1, 2 * columns - 1, heads), from the most negative offset (query minus key) on.
    """

    def __init__(self, num_heads: int, grid: Grid, device=None, dtype=None) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(*_offsets(grid), num_heads, device=device, dtype=dtype))

    def init_weights(self) -> None:
        trunc_normal_(self.table, std=0.02)

    def read_on(self, grid: Grid) -> Relative:
        """How this table, and others of its size, are read on a grid."""
        device = self.table.device
        return Relative(
            relative_index(*grid, device), None if grid == self.grid else _axis_matrices(self.grid, grid, device)
        )

    def forward(self, relative: Relative) -> Tensor:
        """The bias (heads, N, N), or (B, heads, n, n) where every sample has its own patches."""
        table = self.table if relative.resample is None else _apply(relative.resample, self.table)
        # heads first, so that the kernels get the bias as they want it, without a copy
        bias = table.flatten(0, 1).T.index_select(1, relative.offsets.flatten()).unflatten(1, relative.offsets.shape)
        return bias if relative.offsets.ndim == 2 else bias.transpose(0, 1)

    def fit(self, saved: Tensor) -> Tensor:
        if saved.ndim != 3:  # left to the comparison of all shapes
            return saved
        grid = ((saved.shape[0] + 1) // 2, (saved.shape[1] + 1) // 2)
        return saved if grid == self.grid else _apply(_axis_matrices(grid, self.grid, saved.device), saved)

    @torch.no_grad()
    def set_grid(self, grid: Grid) -> None:
        if grid != self.grid:
            table = _apply(_axis_matrices(self.grid, grid, self.table.device), self.table)
            self.table, self.grid = nn.Parameter(table, self.table.requires_grad), grid


def _offsets(grid: Grid) -> tuple[int, int]:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _apply(matrices: tuple[Tensor, Tensor], table: Tensor) -> Tensor:
    rows, columns = (matrix.to(table.dtype) for matrix in matrices)
    return torch.einsum("yr,xc,rch->yxh", rows, columns, table)


def _once_a_grid(make: Callable[..., _T]) -> Callable[..., _T]:
    """Remember results, except those of a graph that is being traced: it computes its own."""
    remembered = lru_cache(maxsize=8)(make)

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
def _axis_matrices(old: Grid, new: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """timm's resampling of bias tables (linear between unevenly spaced offsets) as a matrix for each axis:
    (2 * new rows - 1, 2 * old rows - 1) and the same of columns.

    timm resamples values; what it makes of an axis's unit vectors is the axis's matrix.
    """
    rows, columns = _offsets(old)
    units_of_rows = torch.eye(rows).repeat_interleave(columns, 0)  # flat tables; the unit vectors stand for heads
    units_of_columns = torch.eye(columns).repeat(rows, 1)
    units = torch.cat((units_of_rows, units_of_columns), dim=1)
    new_rows, new_columns = _offsets(new)
    resampled = resize_rel_pos_bias_table(units, new, (new_rows * new_columns, units.shape[1]), old)
    resampled = resampled.unflatten(0, (new_rows, new_columns))
    return resampled[:, 0, :rows].contiguous().to(device), resampled[0, :, rows:].contiguous().to(device)
