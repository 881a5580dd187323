"""Relative-position bias: a learned number for each offset between two patches and each head, added to attention.

What depends on grids alone (which offset two patches have, how a table is brought to another grid) is computed once
and shared by all blocks and steps.
"""

from typing import NamedTuple

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from zoo.layers.positions.tables import Grid, GridTable, is_open, same_grid, square_grid
from zoo.layers.remember import once_a_grid


class Relative(NamedTuple):
    """How the tables of `RelativeBias` are read on one grid.

    offsets: number of the offset of each query and key, (N, N), or (B, n, n) where every sample has its own patches.
    resample: two matrices, of rows and of columns, that bring a table to the grid, if it was learned on another.
    """

    offsets: Tensor
    resample: tuple[Tensor, Tensor] | None = None

    def at(self, visible: Tensor) -> "Relative":
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
        return relative_on(self.grid, grid, self.table.device)

    def forward(self, relative: Relative) -> Tensor:
        """The bias (heads, N, N), or (B, heads, n, n) where every sample has its own patches."""
        return read_bias(self.table, relative)

    def place(self, saved: Tensor) -> Tensor:
        if saved.ndim != 2:
            return saved
        rows, columns = _offsets(self.grid)
        return saved.unflatten(0, (square_grid(len(saved), self.grid, rows * columns), -1))

    def fit(self, saved: Tensor) -> Tensor:
        saved = self.place(saved)
        if saved.ndim != 3:
            return saved
        grid = ((saved.shape[0] + 1) // 2, (saved.shape[1] + 1) // 2)
        return saved if grid == self.grid else _apply(axis_matrices(grid, self.grid, saved.device), saved)

    @torch.no_grad()
    def set_grid(self, grid: Grid) -> None:
        if grid != self.grid:
            table = _apply(axis_matrices(self.grid, grid, self.table.device), self.table)
            self.table, self.grid = nn.Parameter(table, self.table.requires_grad), grid


def relative_on(own: Grid, grid: Grid, device: torch.device) -> Relative:
    """How tables of the grid `own` are read on a grid."""
    if torch.jit.is_scripting():
        offsets = relative_index(grid[0], grid[1], device)
        return Relative(offsets, None if same_grid(own, grid) else axis_matrices(own, grid, device))
    else:
        offsets = _remembered_index(grid[0], grid[1], device)
        return Relative(offsets, None if same_grid(own, grid) else _remembered_matrices(own, grid, device))


def read_bias(table: Tensor, relative: Relative) -> Tensor:
    """See `RelativeBias.forward`."""
    resample = relative.resample
    if resample is not None:
        table = _apply(resample, table)
    # heads first, so that the kernels get the bias as they want it, without a copy
    offsets = relative.offsets
    bias = table.flatten(0, 1).T.index_select(1, offsets.flatten()).unflatten(1, offsets.shape)
    return bias if offsets.ndim == 2 else bias.transpose(0, 1)


# torch.fx: sizes of the traced image decide what they do
torch.fx.wrap("relative_on")
torch.fx.wrap("read_bias")


def _offsets(grid: Grid) -> tuple[int, int]:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _apply(matrices: tuple[Tensor, Tensor], table: Tensor) -> Tensor:
    rows, columns = matrices
    return torch.einsum("yr,xc,rch->yxh", rows.to(table.dtype), columns.to(table.dtype), table)


def relative_index(rows: int, columns: int, device: torch.device) -> Tensor:
    """(N, N): (dy + rows - 1) * (2 * columns - 1) + dx + columns - 1, with dy, dx = query minus key."""
    y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
    dy = y[:, None] - y + rows - 1
    dx = x[:, None] - x + columns - 1
    index = dy[:, None, :, None] * (2 * columns - 1) + dx[None, :, None, :]  # rows, columns, rows, columns
    return index.reshape(rows * columns, rows * columns)


def axis_matrices(old: Grid, new: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """BEiT's resampling of bias tables as timm does it, linear between unevenly spaced offsets, as a matrix for each
    axis: (2 * new rows - 1, 2 * old rows - 1) and the same of columns."""
    rows, columns = _axis_matrix(old[0], new[0]), _axis_matrix(old[1], new[1])
    if not torch.jit.is_scripting():  # noqa: SIM102
        if is_open(new):  # it may turn out to be the old one, which needs none
            same = (torch.scalar_tensor(new[0]) == old[0]) & (torch.scalar_tensor(new[1]) == old[1])
            rows, columns = (torch.where(same, _diagonal(matrix), matrix) for matrix in (rows, columns))
    return rows.to(device), columns.to(device)


_remembered_index = once_a_grid(relative_index)
_remembered_matrices = once_a_grid(axis_matrices)


def _axis_matrix(old: int, new: int) -> Tensor:
    """(2 * new - 1, 2 * old - 1) of one axis, on the CPU (not every device has float64).

    The old offsets are spread in a geometric progression, so that the outermost come to the new outermost; a new one
    is linear between its neighbors, or the last where it lies beyond.
    """
    growth = torch.full((), 1.25, dtype=torch.float64, device="cpu")
    low, high = torch.full_like(growth, 1.01), torch.full_like(growth, 1.5)
    for _ in range(19):  # timm halves the interval until it is below 1e-6
        growth = (low + high) / 2
        over = (1 - torch.pow(growth, old - 1)) / (1 - growth) > new - 1
        low, high = torch.where(over, low, growth), torch.where(over, growth, high)
    far = torch.pow(growth, torch.arange(old - 1, device="cpu")).cumsum(0)
    places = torch.cat((-far.flip(0), torch.zeros_like(growth)[None], far)).float()
    wanted = torch.arange(2 * new - 1, device="cpu") - (new - 1.0)
    right = torch.searchsorted(places, wanted).clamp(max=2 * old - 2)
    left = (right - 1).clamp(min=0)
    from_left, to_right = (wanted - places[left]).clamp(min=0), (places[right] - wanted).clamp(min=0)
    alone = ((from_left == 0) & (to_right == 0)).float()  # where both neighbors are the same place
    number = torch.arange(2 * old - 1, device="cpu")
    weights = (left[:, None] == number) * (to_right + alone)[:, None]
    weights = weights + (right[:, None] == number) * (from_left + alone)[:, None]
    return weights / weights.sum(1, keepdim=True)


def _diagonal(matrix: Tensor) -> Tensor:
    """Ones on the diagonal of a matrix's shape, zeros elsewhere."""
    rows, columns = matrix.shape
    return (torch.arange(rows)[:, None] == torch.arange(columns)).to(matrix.dtype)
