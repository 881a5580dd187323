"""How good a model is on images that it was not trained on: exact, over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from zoo.errors import RecipeError
from zoo.train.data.loading import ENDLESS, EachOnce, make_loader, to_device


def check_validation(objective: Any, source: Any, held_out: Any) -> None:
    """Raise RecipeError (a ValueError) unless an objective that trains on `source` can be judged on `held_out`."""
    if not hasattr(objective, "judge"):
        raise RecipeError(f"{type(objective).__name__} has nothing to validate; leave out the recipe's validation.")
    if len(held_out) >= ENDLESS:
        raise RecipeError("Endless data can't be validated on; set validation.samples.")
    objective.check_held_out(source, held_out)


@torch.no_grad()
def validate(objective: Any, source: Any, accelerator: Accelerator, batch_size: int, workers: int) -> dict[str, float]:
    """What the objective judges of all of `source`; each process takes its share. Touches no weights.

    batch_size: of one process, unless the objective has its own (`validation_batch`).
    """
    batch_size = getattr(objective, "validation_batch", batch_size)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = EachOnce(len(source), batch_size, rank, world)
    device = accelerator.device
    loader = make_loader(source, objective.validation_transform, batches, workers, device.type == "cuda")
    sums = torch.zeros(len(objective.figures), device=device)
    training = objective.training
    objective.eval()
    with accelerator.autocast():
        for batch in loader:
            sums += objective.judge(to_device(batch, source, device))
    objective.train(training)
    totals = accelerator.reduce(sums, "sum").tolist()
    return objective.figures_of(totals, len(source))
