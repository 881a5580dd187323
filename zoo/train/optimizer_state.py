"""What an optimizer knows besides the weights, in a form that a checkpoint holds: tensors and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def take(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """An optimizer's tensors and numbers: "3.exp_avg" of its fourth parameter, "group0.step" of its first group.

    Raises ValueError for an optimizer that knows anything else.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, value in _entries(optimizer):
        if isinstance(value, Tensor):
            tensors[name] = value
        elif type(value) in (bool, int, float):
            numbers[name] = value
        else:
            raise ValueError(f"its {name.partition('.')[2]} is a {type(value).__name__}, which no checkpoint holds")
    return tensors, numbers


def _entries(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            yield f"{index}.{name}", value
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            # Some count their steps there. The rate is the schedule's, and other kinds of values are settings.
            if name != "lr" and isinstance(value, (Tensor, bool, int, float)):
                yield f"group{index}.{name}", value


def give(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
    """Put back what `take` took. Raises ValueError, KeyError or RuntimeError if it is not of this optimizer."""
    saved: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        place, _, name = key.partition(".")
        value = value.clone() if isinstance(value, Tensor) else value
        if place.startswith("group"):
            optimizer.param_groups[int(place[5:])][name] = value
        else:
            saved.setdefault(int(place), {})[name] = value
    # Its groups hold what was just put there.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in saved[index].items():
            if isinstance(value, Tensor) and value.dtype != values[name].dtype:
                values[name] = value  # load_state_dict has given it its parameter's type


def trial(optimizer_of: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    """Take a step with an optimizer on a few numbers, to learn before the first batch whether it can train and its
    state be kept.

    optimizer_of: makes one for a list of parameters. Raises what the optimizer does, and ValueError as `take`.
    """
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2,), (2, 3), (2, 3, 2, 2))]
    with torch.random.fork_rng(devices=[]):
        optimizer = optimizer_of(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    take(optimizer)
