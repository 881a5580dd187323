"""Fixed 2D sin-cos positions, as the masked-image and cross-view papers add them to patch tokens."""

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import CheckpointMismatchError
from zoo.layers.positions.tables import Grid, GridTable, resample_table, same_grid, square_grid
from zoo.layers.remember import once_a_grid


def sincos_table(dim: int, height: int, width: int) -> Tensor:
    """Table of shape (height * width, dim), row-major, on the CPU; `dim` divisible by 4 (CroCo, section 3; MAE,
    appendix).

    The first half of the channels encodes the column, the second the row; each half is
    [sin(p * w_k)..., cos(p * w_k)...] with w_k = 10000^(-k / (dim / 4)).
    """
    if dim % 4:
        raise ValueError(f"Sin-cos positions need a width divisible by 4, not {dim}; choose another embed_dim.")
    # float64 like the references' numpy code: float32 angles would differ in the last digits. Not every device has it.
    steps = torch.arange(dim // 4, dtype=torch.float64, device="cpu")
    freqs = torch.pow(10000.0, -steps / (dim / 4))
    columns = torch.arange(width, dtype=torch.float64, device="cpu")[:, None] * freqs  # width, dim / 4
    rows = torch.arange(height, dtype=torch.float64, device="cpu")[:, None] * freqs
    columns = torch.cat((columns.sin(), columns.cos()), dim=1)[None].expand(height, width, dim // 2)
    rows = torch.cat((rows.sin(), rows.cos()), dim=1)[:, None].expand(height, width, dim // 2)
    return torch.cat((columns, rows), dim=2).flatten(0, 1).float()


def _sincos_on(dim: int, height: int, width: int, device: torch.device) -> Tensor:
    return sincos_table(dim, height, width).to(device)


_remembered_sincos = once_a_grid(_sincos_on)


def sincos_positions_on(table: Tensor, own: Grid, grid: Grid, compute: bool) -> Tensor:
    """A table (rows, columns, dim) of the grid `own`, or that of another grid: (h * w, dim) of a grid (h, w)."""
    if same_grid(own, grid):
        return table.flatten(0, 1)
    if not compute:
        return resample_table(table.flatten(0, 1), own, grid)
    if torch.jit.is_scripting():
        return sincos_table(table.shape[2], grid[0], grid[1]).to(table.device)
    else:
        return _remembered_sincos(table.shape[2], grid[0], grid[1], table.device)


torch.fx.wrap("sincos_positions_on")


class SincosPositions(GridTable):
    """The table (rows, columns, dim) as a saved buffer, for the patch grid (rows, columns) that a model was made for.

    resample: what other grids get: "compute", the table of that grid (exact), or "bicubic", the saved one
    resampled.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        resample: Literal["compute", "bicubic"] = "compute",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.compute = resample == "compute"
        table = sincos_table(dim, *grid).unflatten(0, grid)
        self.register_buffer("table", table.to(torch.get_default_device() if device is None else device))

    def forward(self, grid: Grid) -> Tensor:
        """The table (h * w, dim) of a grid (h, w)."""
        return sincos_positions_on(self.table, self.grid, grid, self.compute)

    def set_grid(self, grid: Grid) -> None:
        self.table, self.grid = self(grid).unflatten(0, grid), grid

    def place(self, saved: Tensor) -> Tensor:
        """Its values tell the grid; if they are no sin-cos positions, it is taken for square."""
        if saved.ndim != 2 or saved.shape[1] != self.table.shape[2]:
            return saved
        grid = _grid_of_values(saved)
        if grid is None:
            side = square_grid(len(saved), self.grid, self.grid[0] * self.grid[1])
            grid = (side, side)
        return saved.unflatten(0, grid)

    def fit(self, saved: Tensor) -> Tensor:
        """Raises CheckpointMismatchError for a table of another grid that can't be computed or resampled, too."""
        saved = self.place(saved)
        if saved.ndim != 3 or saved.shape[2] != self.table.shape[2]:
            return saved
        grid = (saved.shape[0], saved.shape[1])
        if grid == self.grid:
            return saved
        if self.compute and _grid_of_values(saved.flatten(0, 1)) != grid:
            raise CheckpointMismatchError(
                f"The saved positions of {grid[0]} x {grid[1]} patches are not that grid's sin-cos table, so those of "
                f"{self.grid[0]} x {self.grid[1]} can't be computed. Create the model with the img_size that the "
                "checkpoint was made for, or with pos_resample='bicubic'."
            )
        return sincos_positions_on(saved, grid, self.grid, self.compute).unflatten(0, self.grid)

    def tells_grid(self) -> bool:
        return super().tells_grid() or _grid_of_values(self.table.flatten(0, 1)) == self.grid


def _grid_of_values(table: Tensor) -> Grid | None:
    """The grid whose sin-cos table a (N, dim) table is; None if it is of none."""
    count, dim = table.shape
    table = table.cpu()
    # a row ends where the column's fastest angle is (nearly) a full turn again
    turns = ((table[:, 0].float().abs() < 0.01) & (table[:, dim // 4].float() > 0.99)).nonzero()[:, 0].tolist()
    for width in [*turns[1:], count]:
        if count % width == 0 and _is_sincos(table, width):
            return count // width, width
    return None


_PART = 1 << 18  # elements that are compared at once


def _is_sincos(table: Tensor, width: int) -> bool:
    """Whether a (N, dim) table is `sincos_table`'s of so many columns. A part at a time, since a file's may be of any
    size and none: the first place that differs ends it."""
    count, dim = table.shape
    tolerance = 1e-4 if table.dtype in (torch.float32, torch.float64) else 1e-2
    freqs = torch.pow(10000.0, -torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    start, end = 0, min(16, count)  # a few first: most tables are told by them
    while start < end:
        places = torch.arange(start, end, dtype=torch.float64)
        angles = [axis[:, None] * freqs for axis in (places % width, places.div(width, rounding_mode="floor"))]
        expected = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
        if not torch.allclose(table[start:end].float(), expected, rtol=0, atol=tolerance):
            return False
        start, end = end, min(end + max(1, _PART // dim), count)
    return True
