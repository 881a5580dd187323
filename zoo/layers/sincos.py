"""Fixed 2D sin-cos positions, as the masked-image and cross-view papers add them to patch tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.layers.positions import GridTable, resample_table


def sincos_table(dim: int, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Table of shape (height * width, dim), row-major; `dim` divisible by 4 (CroCo, section 3; MAE, appendix).

    The first half of the channels encodes the column, the second the row; each half is
    [sin(p * w_k)..., cos(p * w_k)...] with w_k = 10000^(-k / (dim / 4)).
    """
    if dim % 4:
        raise ValueError(f"Sin-cos positions need a width divisible by 4, not {dim}; choose another embed_dim.")
    # float64 like the references' numpy code: float32 angles would differ in the last digits
    freqs = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))
    columns = torch.arange(width, dtype=torch.float64, device=device)[:, None] * freqs  # width, dim / 4
    rows = torch.arange(height, dtype=torch.float64, device=device)[:, None] * freqs
    columns = torch.cat((columns.sin(), columns.cos()), dim=1).expand(height, width, dim // 2)
    rows = torch.cat((rows.sin(), rows.cos()), dim=1)[:, None].expand(height, width, dim // 2)
    return torch.cat((columns, rows), dim=2).flatten(0, 1).float()


class SincosPositions(GridTable):
    """The table as a saved buffer, for the patch grid (rows, columns) that a model was made for.

    resample: what other grids get: "compute", the table of that grid (exact), or "bicubic", the saved one
    resampled.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        resample: Literal["compute", "bicubic"] = "compute",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.grid = grid
        self.resample = resample
        self.register_buffer("table", sincos_table(dim, *grid, device=device))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The table (h * w, dim) of a grid (h, w)."""
        return self.table if grid == self.grid else self._other(self.table, self.grid, grid)

    def set_grid(self, grid: tuple[int, int]) -> None:
        self.table, self.grid = self(grid), grid

    def fit(self, saved: Tensor) -> Tensor:
        """A checkpoint's table (N, dim), for this module's grid.

        Its own grid is taken for square, as in all reference checkpoints, unless it is this module's table.
        Raises ValueError where a table of another grid would have to be resampled.
        """
        side = round(saved.shape[0] ** 0.5)
        own = sincos_table(self.dim, *self.grid, device=saved.device)
        if self.grid == (side, side) or (saved.shape == own.shape and torch.allclose(saved.float(), own, atol=1e-5)):
            return saved
        if self.resample == "bicubic" and side * side != len(saved):
            raise ValueError(
                f"A saved table of {len(saved)} positions is not of a square grid and can't be resampled; use "
                "pos_resample='compute'."
            )
        return self._other(saved, (side, side), self.grid)

    def _other(self, table: Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        if self.resample == "bicubic":
            return resample_table(table, old_grid, grid)
        return sincos_table(self.dim, *grid, device=table.device)
