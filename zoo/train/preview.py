"""A recipe before it is run: what it comes to, and what the network will see."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from zoo.errors import DivergedError, RecipeError
from zoo.train.build import make_curriculum, make_model, make_objective, make_parts, make_source
from zoo.train.curriculum import scaled
from zoo.train.data.loading import ENDLESS, Batches, StepSampler, make_loader, to_device
from zoo.train.engine import make_accelerator, step_seed
from zoo.train.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def dry_run(
    recipe: Recipe, *, workers: int = 0, accumulate: int | None = None, compiled: bool = False, steps: int = 3
) -> dict[str, Any]:
    """Take a few real steps and say what the whole run comes to: steps, samples, seconds and bytes.

    Keys: steps, samples, epochs (None for procedural data), parameters, seconds_per_step, hours,
    memory_bytes (peak of this process on a CPU, of the allocator on a GPU), device.
    """
    import resource  # not on Windows, where all but this works

    accumulate = accumulate or recipe.accumulate
    trial = _Trial(recipe, workers, accumulate, compiled)
    trial.run(steps + 1)
    plan, source, cuda = trial.parts.plan, trial.parts.source, trial.device.type == "cuda"
    per_step = trial.seconds_per_step(steps)  # the first one warms up
    samples = plan.steps * recipe.batch_size
    return dict(
        steps=plan.steps,
        samples=samples,
        epochs=None if len(source) >= ENDLESS else samples / len(source),
        parameters=sum(p.numel() for p in trial.parts.objective.parameters() if p.requires_grad),
        seconds_per_step=per_step,
        hours=per_step * plan.steps / 3600,
        memory_bytes=torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device=str(trial.device),
    )


def fit_to_time(
    recipe: Recipe, seconds: float, *, workers: int = 0, accumulate: int | None = None, compiled: bool = False
) -> Recipe:
    """The recipe with as long a schedule as this machine computes in `seconds`, this function's own time included; its
    milestones and its curriculum take the same share of it, and a shorter one falls smoothly.

    A trial of a tenth of the time, of 20 seconds at most, says how long a step takes; of its steps the first half
    warms up. What the run computes is a matter of the resulting recipe alone. Raises RecipeError (a ValueError) for
    several processes, which would each come to another length.
    """
    start = time.monotonic()
    accumulate = accumulate or recipe.accumulate
    trial = _Trial(recipe, workers, accumulate, compiled)
    if trial.accelerator.num_processes > 1:
        raise RecipeError("Several processes can't fit a run to a time; set schedule.length.")
    trial.run(most=1 << 30, seconds=min(20.0, seconds / 10))
    per_step = trial.seconds_per_step(len(trial.ends) // 2)
    left = seconds - (time.monotonic() - start)
    steps = max(1, int(_SHARE * left / per_step))
    unit = trial.parts.plan.unit
    length: float = steps if unit == 1 else steps / unit
    share = length / recipe.schedule.length
    schedule = replace(
        recipe.schedule,
        length=length,
        stop=None,
        warmup=min(recipe.schedule.warmup, length / 4),
        milestones=tuple(share * milestone for milestone in recipe.schedule.milestones),
        staircase=recipe.schedule.staircase and share >= 1,  # within one epoch a staircase never falls
    )
    return replace(recipe, schedule=schedule, curriculum=scaled(recipe.curriculum, share))


_SHARE = 0.95  # of the time that is planned for: steps may get slower, and the end is written too


class _Trial:
    """Real steps of a recipe that are thrown away; ends: when each was done."""

    def __init__(self, recipe: Recipe, workers: int, accumulate: int, compiled: bool) -> None:
        self.accelerator = make_accelerator(recipe, accumulate=1)
        self.device = self.accelerator.device
        self.recipe, self.workers, self.accumulate = recipe, workers, accumulate
        self.parts = make_parts(recipe, device=self.device.type, compiled=compiled)
        self.ends: list[float] = []

    def run(self, most: int, seconds: float = math.inf) -> None:
        """Take steps, `most` at most, until so many seconds have passed since the first one's end."""
        source, objective = self.parts.source, self.parts.objective
        wrapped, optimizer = self.accelerator.prepare(objective, self.parts.optimizer)
        micro = self.recipe.batch_size // (self.accumulate * self.accelerator.num_processes)
        order = getattr(source, "order", None)
        sampler = StepSampler(len(source), micro, self.recipe.seed, 0, most, 1, 0, 1, order)
        cuda = self.device.type == "cuda"
        loader = make_loader(source, objective.transform, sampler, self.workers, cuda, self.parts.curriculum)
        wrapped.train()
        with Batches(loader) as batches:
            for number, batch in enumerate(batches):
                source_now = self.parts.source_at(number * micro // self.recipe.batch_size)
                loss = wrapped(to_device(batch, source_now, self.device))["loss"]
                self.accelerator.backward(loss)
                if self.recipe.optimizer.clip_grad is not None:
                    self.accelerator.clip_grad_norm_(wrapped.parameters(), self.recipe.optimizer.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
                objective.after_step(0.0)
                if not math.isfinite(loss.item()):
                    raise DivergedError(
                        "The loss of the first steps is NaN or infinite; try precision: fp32, or look at the data with "
                        "`zoo show-batch`."
                    )
                self.ends.append(time.monotonic())
                if self.ends[-1] - self.ends[0] > seconds and len(self.ends) > 3:
                    break

    def seconds_per_step(self, last: int) -> float:
        """Of all parts of a step; the mean of the `last` ones."""
        return (self.ends[-1] - self.ends[-1 - last]) / last * self.accumulate


def show_batch(recipe: Recipe, samples: int = 4) -> Figure:
    """A picture of what the network sees of the first `samples` samples of a recipe's run."""
    source = make_source(recipe)
    with torch.device("meta"):  # nothing is computed with it
        model = make_model(replace(recipe, init=""))
    objective = make_objective(recipe, source, model)
    curriculum = make_curriculum(recipe, source, objective)
    order = getattr(source, "order", None)
    sampler = StepSampler(len(source), samples, recipe.seed, 0, 1, 1, 0, 1, order)
    ((*keys,),) = sampler
    loader = make_loader(source, objective.transform, sampler, workers=0, pin_memory=False, curriculum=curriculum)
    with Batches(loader) as batches:
        batch = next(batches)
    if changes := curriculum.data(0):
        source = source.changed(**changes)
    batch = to_device(batch, source, torch.device("cpu"))
    torch.manual_seed(step_seed(recipe.seed, 0, 0, 0))
    figure = objective.show([source[index] for index, _ in keys], batch)
    figure.suptitle(f"{recipe.name}: what the network sees", fontsize=13, fontweight="bold")
    return figure
