"""Tables that belong to a patch grid, and trained positions: what happens to them at another image size.

What encoders call can be read by TorchScript (so annotations are objects here, not texts), traced by torch.fx (so
what depends on an image's size is in functions that stay whole) and exported with sizes left open.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import CheckpointMismatchError

Grid = tuple[int, int]  # rows, columns of patches


class GridTable(nn.Module):
    """Base of tables made for one patch grid: a model that moves to another size moves all of them.

    table: its first two axes are the grid's, so that a saved one tells which it was made for.
    """

    table: Tensor
    grid: Grid

    def set_grid(self, grid: Grid) -> None:
        """Make `grid` the one whose table is kept."""
        raise NotImplementedError

    def place(self, saved: Tensor) -> Tensor:
        """A checkpoint's table with its own grid's rows and columns as axes, which a reference's layout has in one.

        What is no such table at all is left to the comparison of all shapes.
        Raises CheckpointMismatchError if its grid is not known.
        """
        raise NotImplementedError

    def fit(self, saved: Tensor) -> Tensor:
        """A checkpoint's table, placed or not, for this module's grid. Raises CheckpointMismatchError like `place`."""
        raise NotImplementedError

    def tells_grid(self) -> bool:
        """Whether `place` knows this table's grid in a reference's layout too, where rows and columns are one axis."""
        return self.grid[0] == self.grid[1]


def square_grid(count: int, own: Grid, own_count: int) -> int:
    """The side of the square table that has `count` places, of which a checkpoint in a reference's layout doesn't say
    how they lie; the references' own grids are all square.

    own, own_count: the grid that the model was made for, and the places that its table has for it.
    Raises CheckpointMismatchError for a count that is no square, or that is a rectangular model's own.
    """
    side = math.isqrt(count)
    if side**2 == count and (count != own_count or own[0] == own[1]):
        return side
    raise CheckpointMismatchError(
        f"A saved table of {count} places doesn't tell its grid, and a model for {own[0]} x {own[1]} patches can't "
        "guess it. Give the table in the file two axes, rows and columns, in place of its first one."
    )


def is_open(grid: Grid) -> bool:
    """Whether a size is left open, as in torch.export with dynamic shapes: then it can't be compared with another."""
    return isinstance(grid[0], torch.SymInt) or isinstance(grid[1], torch.SymInt)


def same_grid(own: Grid, grid: Grid) -> bool:
    """Whether a table of the grid `own` serves `grid` as it is."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves out what stands under this alone
        if is_open(grid):
            return False
    return own[0] == grid[0] and own[1] == grid[1]


def resample_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Bicubic resampling of a saved (N, D) table from one patch grid (rows, columns) to another."""
    if not torch.jit.is_scripting():  # noqa: SIM102
        if torch.compiler.is_compiling():
            return _by_matrices(table, old_grid, new_grid, False)
    maps = table.float().reshape(1, old_grid[0], old_grid[1], -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=[new_grid[0], new_grid[1]], mode="bicubic", antialias=True)
    return maps.flatten(2)[0].T.to(table.dtype)


def stretch_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resampling as `resample_table`, but as DINO, HiViT and iTPN do it: by the factors (new side + 0.1) / old side,
    which shifts the places a little, and without a filter.

    A table's own grid is shifted, too, with the gradients of one that isn't: so does torch's interpolation on CPUs, and
    so the golden cases have it. Its kernel for CUDA ("input and output are the same size, just copy",
    aten/src/ATen/native/cuda/UpSampleBicubic2d.cu) does not, hence matrices: one function on every device.
    """
    if not torch.jit.is_scripting():
        if same_grid(old_grid, new_grid):
            own = table.detach()
            return table + (_by_matrices(own, old_grid, new_grid, True) - own)
        if torch.compiler.is_compiling():
            return _by_matrices(table, old_grid, new_grid, True)
    maps = table.float().reshape(1, old_grid[0], old_grid[1], -1).permute(0, 3, 1, 2)
    factors = [(new_grid[0] + 0.1) / old_grid[0], (new_grid[1] + 0.1) / old_grid[1]]
    maps = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    return maps.flatten(2)[0].T.to(table.dtype)


def _by_matrices(table: Tensor, old_grid: Grid, new_grid: Grid, stretch: bool) -> Tensor:
    """The two resamplings above as products with a matrix for each axis, which a compiled graph can hold for sizes
    that are left open, backward pass included; torch's interpolation can't. Equal grids give the table itself where
    the size is open: then the caller can't tell them from others."""
    if stretch:
        rows, columns = _stretch_matrices(old_grid, new_grid, table.device)
    else:
        rows, columns = (_bicubic_matrix(old, new, table.device) for old, new in zip(old_grid, new_grid))
    maps = table.float().reshape(*old_grid, -1)
    return torch.einsum("yr,xc,rcd->yxd", rows, columns, maps).flatten(0, 1).to(table.dtype)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys's interpolation kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _bicubic_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): F.interpolate(size=new, mode="bicubic", antialias=True) along an axis."""
    places = torch.arange(new, device=device, dtype=torch.float32)[:, None]
    scale = old / torch.scalar_tensor(new, device=device)
    width = scale.clamp(min=1)  # of the filter, in old places
    distance = (torch.arange(old, device=device) + 0.5 - scale * (places + 0.5)).abs() / width
    weights = _cubic(distance, -0.5)
    return weights / weights.sum(1, keepdim=True)


def _stretch_matrices(old: Grid, new: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """(new, old) of rows and of columns: F.interpolate(scale_factor=(new + 0.1) / old, mode="bicubic"); open sizes that
    come to the old ones are left as they are."""
    sizes = [torch.scalar_tensor(side, device=device) for side in new]
    steps = [side / (size + 0.1) for side, size in zip(old, sizes)]
    if is_open(new):
        same = (sizes[0] == old[0]) & (sizes[1] == old[1])
        steps = [torch.where(same, torch.ones_like(step), step) for step in steps]
    return _stretch_matrix(old[0], new[0], steps[0]), _stretch_matrix(old[1], new[1], steps[1])


def _stretch_matrix(old: int, new: int, step: Tensor) -> Tensor:
    source = (torch.arange(new, device=step.device) + 0.5) * step - 0.5
    first = source.floor() - 1
    taps = first[:, None] + torch.arange(4, device=step.device)  # new, 4
    weights = _cubic((taps - source[:, None]).abs(), -0.75)
    # new, 4, old; the border repeats
    chosen = taps.clamp(0, old - 1)[..., None] == torch.arange(old, device=step.device)
    return (chosen * weights[..., None]).sum(1)


def positions_on(table: Tensor, own: Grid, grid: Grid, stretch: bool) -> Tensor:
    """A table of trained positions (rows, columns, dim) of the grid `own` as (h * w, dim) of a grid (h, w)."""
    flat = table.flatten(0, 1)
    if same_grid(own, grid):
        return flat
    return stretch_table(flat, own, grid) if stretch else resample_table(flat, own, grid)


torch.fx.wrap("positions_on")


class LearnedPositions(GridTable):
    """Trained positions: a table of shape (rows, columns, dim).

    resample: how other grids get theirs: `resample_table` or `stretch_table`.
    """

    def __init__(
        self, dim: int, grid: Grid, resample: Literal["bicubic", "stretch"] = "bicubic", device=None, dtype=None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.stretch = resample == "stretch"
        self.table = nn.Parameter(torch.empty(*grid, dim, device=device, dtype=dtype))

    def forward(self, grid: Grid) -> Tensor:
        """The table (h * w, dim) of a grid (h, w)."""
        return positions_on(self.table, self.grid, grid, self.stretch)

    @torch.no_grad()
    def set_grid(self, grid: Grid) -> None:
        table = self(grid).unflatten(0, grid).contiguous()
        self.table, self.grid = nn.Parameter(table, requires_grad=self.table.requires_grad), grid

    def place(self, saved: Tensor) -> Tensor:
        if saved.ndim != 2:
            return saved
        return saved.unflatten(0, (square_grid(len(saved), self.grid, self.grid[0] * self.grid[1]), -1))

    def fit(self, saved: Tensor) -> Tensor:
        saved = self.place(saved)
        if saved.ndim != 3:
            return saved
        grid = (saved.shape[0], saved.shape[1])
        return positions_on(saved, grid, self.grid, self.stretch).unflatten(0, self.grid)
