"""Compiling a model region by region: its repeated blocks, each kind once, whatever stands between them as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

import torch
from timm.models.resnet import ResNet
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_GRAPHS = 64  # of one kind of block that may be compiled: sizes, training or not, with or without a mask


def compile_blocks(model: _Module, backend: str = "inductor", **options: Any) -> _Module:
    """Let torch compile the model's blocks, in place; they are compiled when they first run. Returns the model.

    A block is what a list or sequence holds at least two of one class of, and what computes something itself. Equal
    blocks share their code, so the time this takes does not grow with the depth, and a model's shell (masks, positions,
    heads) stays ordinary Python. Tensor names don't change: weights and checkpoints fit either way. Random numbers,
    such as those of dropped paths, are those of the model that is not compiled. ResNets in evaluation mode take the
    channels-last memory format, without which compiling them is hardly worth it on a CPU (and with which training is
    slower there); values and shapes stay as they are.

    options: of the backend, such as {"triton.cudagraphs": True}.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    if backend == "inductor":
        options = {"fallback_random": True, **options}
    for module in model.modules():
        if isinstance(module, ResNet) and not module.training:
            module.to(memory_format=torch.channels_last)
    for block in find_blocks(model):
        block.compile(dynamic=False, backend=backend, options=options or None)
    return model


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost repeated modules of a model, in its order; see `compile_blocks`."""
    found: list[nn.Module] = []
    counts = Counter(map(type, model.children())) if isinstance(model, _CONTAINERS) else Counter()
    for child in model.children():
        computes = type(child).forward is not nn.Module.forward and not isinstance(child, _CONTAINERS)
        if counts[type(child)] > 1 and computes and any(child.children()):
            found.append(child)
        else:
            found += find_blocks(child)
    return found
