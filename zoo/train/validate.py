"""How good a model is on images that it was not trained on: exact, over any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from zoo.train.build import Parts
from zoo.train.data.loading import Batches, EachOnce, make_loader, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def validate(
    parts: Parts, accelerator: Accelerator, batch_size: int, workers: int
) -> tuple[dict[str, float], Figure | None]:
    """What the objective judges of all held-out samples, under ema_... of the average of its weights too, and a
    picture, if it draws one. Touches no weights.

    batch_size: of all processes, each of which takes its share, unless the objective has its own (`validation_batch`).
    """
    objectives: dict[str, Any] = {"": parts.objective}
    if parts.average is not None:
        objectives["ema_"] = parts.average.module
    share = getattr(parts.objective, "validation_batch", max(1, batch_size // accelerator.num_processes))
    batches = EachOnce(len(parts.held_out), share, accelerator.process_index, accelerator.num_processes)
    device = accelerator.device
    cuda = device.type == "cuda"
    loader = make_loader(parts.held_out, objectives[""].validation_transform, batches, workers, cuda)
    sums = {prefix: torch.zeros(len(parts.objective.figures), device=device) for prefix in objectives}
    training = parts.objective.training
    parts.objective.eval()
    picture = None
    with accelerator.autocast(), Batches(loader) as loaded:
        for number, batch in enumerate(loaded):
            batch = to_device(batch, parts.held_out, device)
            for prefix, objective in objectives.items():
                sums[prefix] += objective.judge(batch)
            if number == 0 and accelerator.is_main_process:
                picture = parts.objective.picture(batch)
    parts.objective.train(training)
    figures: dict[str, float] = {}
    for prefix, total in sums.items():
        totals = accelerator.reduce(total, "sum").tolist()
        found = parts.objective.figures_of(totals, len(parts.held_out))
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
    return figures, picture
