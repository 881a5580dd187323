"""A recipe before it is run: what it comes to, and what the network will see."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from zoo.errors import DivergedError
from zoo.train.build import make_curriculum, make_model, make_objective, make_parts, make_source
from zoo.train.data.loading import ENDLESS, Batches, StepSampler, make_loader, to_device
from zoo.train.engine import make_accelerator, step_seed
from zoo.train.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def dry_run(recipe: Recipe, *, workers: int = 0, accumulate: int | None = None, steps: int = 3) -> dict[str, Any]:
    """Take a few real steps and say what the whole run comes to: steps, samples, seconds and bytes.

    Keys: steps, samples, epochs (None for procedural data), parameters, seconds_per_step, hours,
    memory_bytes (peak of this process on a CPU, of the allocator on a GPU), device.
    """
    import resource  # not on Windows, where all but this works

    accelerator = make_accelerator(recipe, accumulate=1)
    parts = make_parts(recipe)
    source, plan, objective = parts.source, parts.plan, parts.objective
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    wrapped, optimizer = accelerator.prepare(objective, parts.optimizer)
    accumulate = accumulate or recipe.accumulate
    micro = recipe.batch_size // (accumulate * accelerator.num_processes)
    sampler = StepSampler(len(source), micro, recipe.seed, 0, steps + 1, 1, 0, 1, getattr(source, "order", None))
    cuda = accelerator.device.type == "cuda"
    loader = make_loader(source, objective.transform, sampler, workers, cuda, parts.curriculum)
    seconds = []
    start = time.monotonic()
    for batch in Batches(loader):
        loss = wrapped(to_device(batch, source, accelerator.device))["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0.0)
        if not math.isfinite(loss.item()):
            raise DivergedError(
                "The loss of the first steps is NaN or infinite; try precision: fp32, or look at the data with "
                "`zoo show-batch`."
            )
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
    per_step = sum(seconds[1:]) / len(seconds[1:]) * accumulate  # the first one warms up
    samples = plan.steps * recipe.batch_size
    return dict(
        steps=plan.steps,
        samples=samples,
        epochs=None if len(source) >= ENDLESS else samples / len(source),
        parameters=parameters,
        seconds_per_step=per_step,
        hours=per_step * plan.steps / 3600,
        memory_bytes=torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device=str(accelerator.device),
    )


def show_batch(recipe: Recipe, samples: int = 4) -> Figure:
    """A picture of what the network sees of the first `samples` samples of a recipe's run."""
    source = make_source(recipe)
    with torch.device("meta"):  # nothing is computed with it
        model = make_model(replace(recipe, init=""))
    objective = make_objective(recipe, source, model)
    curriculum = make_curriculum(recipe, source, objective)
    sampler = StepSampler(len(source), samples, recipe.seed, 0, 1, 1, 0, 1)
    ((*keys,),) = sampler
    loader = make_loader(source, objective.transform, sampler, workers=0, pin_memory=False, curriculum=curriculum)
    with Batches(loader) as batches:
        batch = next(batches)
    batch = to_device(batch, source, torch.device("cpu"))
    torch.manual_seed(step_seed(recipe.seed, 0, 0, 0))
    figure = objective.show([source[index] for index, _ in keys], batch)
    figure.suptitle(f"{recipe.name}: what the network sees", fontsize=13, fontweight="bold")
    return figure
