"""How good a model is on images that it was not trained on: exact, over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from zoo.errors import RecipeError
from zoo.train.data.loading import ENDLESS, EachOnce, make_loader


def check_validation(objective: Any, source: Any, held_out: Any) -> None:
    """Raise RecipeError (a ValueError) unless an objective that trains on `source` can be judged on `held_out`."""
    if not hasattr(objective, "judge"):
        raise RecipeError(f"{type(objective).__name__} has nothing to validate; leave out the recipe's validation.")
    if len(held_out) >= ENDLESS:
        raise RecipeError("Endless data can't be validated on; set validation.samples.")
    classes = getattr(held_out, "num_classes", 0)
    names = [of.classes for of in (source, held_out) if getattr(of, "classes", ())]
    if not 0 < classes <= objective.model.num_classes or names[1:] not in ([], names[:1]):
        raise RecipeError(
            f"The validation images, of {classes} classes, are not of those that are trained on; set validation.path "
            "(or validation.split) to images of the same classes."
        )


@torch.no_grad()
def validate(objective: Any, source: Any, accelerator: Accelerator, batch_size: int, workers: int) -> dict[str, float]:
    """Means over all of `source` of what the objective judges; each process takes its share. Touches no weights.

    batch_size: of one process.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = EachOnce(len(source), batch_size, rank, world)
    device = accelerator.device
    loader = make_loader(source, objective.validation_transform, batches, workers, device.type == "cuda")
    sums = torch.zeros(len(objective.figures), device=device)
    training = objective.training
    objective.eval()
    with accelerator.autocast():
        for batch in loader:
            sums += objective.judge({key: value.to(device, non_blocking=True) for key, value in batch.items()})
    objective.train(training)
    totals = accelerator.reduce(sums, "sum").tolist()
    return {name: total / len(source) for name, total in zip(objective.figures, totals)}
