"""Weights, gradients and optimizer state dealt out among the processes (torch's FSDP2, through accelerate)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo.errors import RecipeError
from zoo.models.making.compiling import find_blocks
from zoo.train.recipe import Recipe


def plugin_of(recipe: Recipe) -> FullyShardedDataParallelPlugin | None:
    """What accelerate has to know of a run whose recipe says `shard`. Raises RecipeError (a ValueError)."""
    if not recipe.shard:
        return None
    if recipe.ema is not None or recipe.validation:
        raise RecipeError("Sharded weights can be neither averaged nor validated yet; leave out ema and validation.")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,  # every process has made the same model
    )


def prepare(
    accelerator: Accelerator, recipe: Recipe, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """accelerate's `prepare`; in a run that shards, each block is dealt out by itself, and so is the state that the
    optimizer has from a checkpoint, which accelerate would leave behind."""
    if not recipe.shard or accelerator.num_processes == 1:
        return accelerator.prepare(objective, optimizer)
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:  # accelerate takes it for a thing of GPUs; torch does it on CPUs as well
        plugin = accelerator.state.fsdp_plugin = plugin_of(recipe)
        accelerator.state.distributed_type = DistributedType.FSDP
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in find_blocks(objective)})
    before = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [optimizer.state.get(parameter, {}) for parameter in before]
    wrapped, prepared = accelerator.prepare(objective, optimizer)
    optimizer.state.clear()
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, state in zip(after, states, strict=True):
        if state:
            optimizer.state[parameter] = {name: _like(parameter, value) for name, value in state.items()}
    return wrapped, prepared


def _like(parameter: Any, value: Any) -> Any:
    """A whole tensor, such as a mean of gradients, dealt out as its parameter is; anything else as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        value = value.to(parameter.to_local().device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def all_finite(parameters: Iterable[Tensor], accelerator: Accelerator) -> bool:
    """Whether there is no NaN and no infinity among the parameters, also in other processes' parts of them."""
    sharded = False
    finite = []
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            sharded, parameter = True, parameter.to_local()
        finite.append(parameter.detach().isfinite().all())
    answer = torch.stack(finite).all().float()
    return bool(accelerator.reduce(answer, "mean") == 1 if sharded else answer)


def whole(tensors: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Tensors of which each process may have a part, one after the other put together on the CPU; plain ones as they
    are. All processes have to call it. keep: whether this one wants them."""
    result = {}
    for name, value in tensors.items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
            value = value.cpu() if keep else None
        result[name] = value
    return result
