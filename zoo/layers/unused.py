"""Parameters that a forward pass leaves out, under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def with_unused(x: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """x; in the backward pass of a model in DistributedDataParallel, which waits for the gradients of all parameters,
    those of `parameters` are zeros. Elsewhere they stay as they are, None."""
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if torch.compiler.is_compiling() or ddp is None or ddp.find_unused_parameters or not torch.is_grad_enabled():
        return x
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Unused.apply(x, *trained) if trained else x


class _Unused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *map(torch.zeros_like, ctx.parameters)
