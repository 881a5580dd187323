"""Tables that belong to a patch grid, and trained positions: what happens to them at another image size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]  # rows, columns of patches


class GridTable(nn.Module):
    """Base of tables made for one patch grid: a model that moves to another size moves all of them."""

    table: Tensor
    grid: Grid

    def set_grid(self, grid: Grid) -> None:
        """Make `grid` the one whose table is kept."""
        raise NotImplementedError

    def fit(self, saved: Tensor) -> Tensor:
        """A checkpoint's table, for this module's grid."""
        raise NotImplementedError


def resample_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Bicubic resampling of a saved (N, D) table from one patch grid (rows, columns) to another."""
    maps = table.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", antialias=True)
    return maps.flatten(2)[0].T.to(table.dtype)


def stretch_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resampling as `resample_table`, but as DINO, HiViT and iTPN do it: by the factors (new side + 0.1) / old side,
    which shifts the places a little, and without a filter."""
    maps = table.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    factors = [(new + 0.1) / old for new, old in zip(new_grid, old_grid)]
    maps = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    return maps.flatten(2)[0].T.to(table.dtype)


class LearnedPositions(GridTable):
    """Trained positions: a table of shape (rows, columns, dim), so that a saved one tells its grid.

    resample: how other grids get theirs: `resample_table` or `stretch_table`.
    """

    def __init__(
        self, dim: int, grid: Grid, resample: Literal["bicubic", "stretch"] = "bicubic", device=None, dtype=None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.resample = resample_table if resample == "bicubic" else stretch_table
        self.table = nn.Parameter(torch.empty(*grid, dim, device=device, dtype=dtype))

    def forward(self, grid: Grid) -> Tensor:
        """The table (h * w, dim) of a grid (h, w)."""
        table = self.table.flatten(0, 1)
        return table if grid == self.grid else self.resample(table, self.grid, grid)

    @torch.no_grad()
    def set_grid(self, grid: Grid) -> None:
        table = self(grid).unflatten(0, grid).contiguous()
        self.table, self.grid = nn.Parameter(table, requires_grad=self.table.requires_grad), grid

    def fit(self, saved: Tensor) -> Tensor:
        """A checkpoint's table (rows, columns, dim), for this module's grid.

        One of shape (N, dim) doesn't tell its grid: it is taken for this module's. Raises ValueError if it can't be.
        """
        if saved.ndim == 2:
            if len(saved) != self.grid[0] * self.grid[1]:
                raise ValueError(
                    f"A saved table of {len(saved)} positions does not tell its grid, so it can't be resampled to "
                    f"{self.grid}; create the model with the img_size that the checkpoint was made for."
                )
            return saved.unflatten(0, self.grid)
        grid = (saved.shape[0], saved.shape[1])
        if grid == self.grid:
            return saved
        return self.resample(saved.flatten(0, 1), grid, self.grid).unflatten(0, self.grid)
