"""The processes of a distributed run, as objectives see them; without such a run there is one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if world() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in their order, without gradients; each process must have the same number of rows."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_differentiably(rows: Tensor) -> Tensor:
    """Rows of all processes in their order; backward, each gets the sum of what all their losses say of its own."""
    return _Gather.apply(rows) if world() > 1 else rows


class _Gather(torch.autograd.Function):
    """torch's own is deprecated since 2.14, and what replaces it is newer than the oldest torch that we allow."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]
