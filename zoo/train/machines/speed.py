"""A recipe's settings of how its objective is computed, which leave what it computes alone up to rounding."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zoo.errors import RecipeError
from zoo.models.making.compiling import compile_blocks
from zoo.train.recipe import Recipe

_HEAD = re.compile(r"(?:^|\.)(?:(?:\w+_)?heads?\d?|dense)$")  # of a module's name


def set_up(recipe: Recipe, objective: Any, compiled: bool = False) -> None:
    """Apply the recipe's tf32, channels_last, grad_checkpointing and float32_heads, see `Recipe`, and compile blocks.

    TF32 is a switch of the whole process. Raises RecipeError (a ValueError) for a setting that the model can't take.
    """
    torch.set_float32_matmul_precision("high" if recipe.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.tf32
    if recipe.channels_last:
        objective.to(memory_format=torch.channels_last)
    if recipe.grad_checkpointing:
        if not hasattr(objective.model, "set_grad_checkpointing"):
            raise RecipeError(f"{recipe.model} can't compute blocks twice; leave out grad_checkpointing.")
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in objective.modules()):
            raise RecipeError(
                f"{recipe.model} has batch norms, whose running statistics would count every batch twice; leave out "
                "grad_checkpointing."
            )
        objective.model.set_grad_checkpointing(True)
    if recipe.float32_heads:
        heads = find_heads(objective.model)
        if not heads:
            raise RecipeError(f"{recipe.model} has no head to keep in float32; leave out float32_heads.")
        for head in heads:
            _keep_in_float32(head)
    if compiled:
        compile_blocks(objective)


def find_heads(model: nn.Module) -> list[nn.Module]:
    """What makes a model's predictions of its tokens or features: the outermost modules called head(s) or dense."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if _HEAD.search(name) and not inside and any(True for _ in module.parameters()):
            found[name] = module
    return list(found.values())


def _keep_in_float32(head: nn.Module) -> None:
    """Let a module compute in float32 where the rest runs under autocast."""
    kind: Any = type(head)

    class InFloat32(kind):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map(_to_float32, (args, kwargs))
            with torch.autocast(next(self.parameters()).device.type, enabled=False):
                return super().forward(*args, **kwargs)

    InFloat32.__name__ = kind.__name__
    head.__class__ = InFloat32  # and not a forward of its own, which a copy of the module would share with it


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
