"""The one training loop: any objective, on one CPU or GPU or many (accelerate underneath).

A step is a pure function of (recipe, step, state): samples come from the step's number, randomness is seeded
by it. So a run killed at any moment and started again with the same command ends with the same weights, bit
for bit on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from zoo.errors import TrainingError
from zoo.train.build import Parts, make_parts
from zoo.train.data.loading import Batches, StepSampler, make_loader, to_device
from zoo.train.machines.sharding import plugin_of, prepare
from zoo.train.machines.stopping import StopSignal
from zoo.train.recipe import Recipe
from zoo.train.reports import Reports
from zoo.train.run import Run
from zoo.train.validate import validate


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    source: Any = None,
    workers: int = 2,
    accumulate: int | None = None,
    compiled: bool = False,
    progress: bool = True,
) -> Path:
    """Run a recipe into the folder `output`, or go on with the run that is there; returns the weights' path.

    output gets recipe.yaml, log.jsonl, tensorboard/, checkpoint.safetensors (everything needed to go on,
    replaced atomically), and at the end model.safetensors, loss.png and, if it is validated, results.json;
    best.safetensors are the weights that were best in validation.
    source: the samples, in place of those that the recipe's `data` names: a map-style dataset, see
    docs/train.md. accumulate: parts that each process's share of a batch is computed in, by default the recipe's.
    compiled: let torch compile the model's blocks; a run may go on with or without.

    Raises RecipeError, DataError (ValueErrors), TrainingError (RuntimeError), DivergedError (ArithmeticError),
    StorageError (OSError).
    """
    accumulate = accumulate or recipe.accumulate
    accelerator = make_accelerator(recipe, accumulate, output)
    parts = make_parts(recipe, source, accelerator.num_processes, accelerator.device.type, compiled)
    plan, objective = parts.plan, parts.objective
    run = Run(output, recipe, plan, accelerator)
    with (
        run.held(parts) as start,
        StopSignal() as stop,
        run.progress_bar(start, progress) as bar,
        step_batches(recipe, parts, accelerator, start, accumulate, workers) as batches,
    ):
        wrapped, optimizer = prepare(accelerator, recipe, objective, parts.optimizer)
        parts.to(accelerator.device)
        reports = Reports(accelerator)
        wrapped.train()
        for step in range(start, plan.steps):
            objective.configure(**parts.curriculum.objective(step))
            source_now = parts.source_at(step)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate(step) * group["lr_scale"]
            for part in range(accumulate):
                batch = to_device(next(batches), source_now, accelerator.device)
                torch.manual_seed(step_seed(recipe.seed, step, part, accelerator.process_index))
                with accelerator.accumulate(wrapped):
                    outcome = wrapped(batch)
                    accelerator.backward(outcome["loss"])
                    if accelerator.sync_gradients and recipe.optimizer.clip_grad is not None:
                        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.optimizer.clip_grad)
                    optimizer.step()
                    optimizer.zero_grad()
                reports.add(outcome)
            done = step + 1
            objective.after_step(done / plan.steps)
            parts.update_average(step)
            reports.end_step()
            bar.update()

            saving = plan.saves(done) or (stop.wished and accelerator.num_processes == 1)
            validating = parts.held_out is not None and plan.validates(done)
            if not (saving or validating or plan.logs(done)):
                continue
            values, stopping = reports.read(stop.wished)
            run.check_finite(values["loss"], done)
            figures: dict[str, float] = {}
            if validating:
                with run.paused():
                    figures, picture = validate(parts, accelerator, recipe.batch_size // accumulate, workers)
                run.show(done, picture)
                run.keep_best(done, parts, figures)
            bar.set_postfix(run.log(done, values, plan.learning_rate(step), figures))
            if saving or stopping:
                run.save(done, parts)
            if stopping and done < plan.steps:
                raise TrainingError(
                    f"Stopped after step {done} of {plan.steps} with everything saved; start the same command "
                    "again to go on."
                )
        run.finish(parts)
    accelerator.wait_for_everyone()
    return run.weights


def make_accelerator(recipe: Recipe, accumulate: int, output: str | Path = ".") -> Accelerator:
    """The processes, the precision and the trackers of a run."""
    AcceleratorState._reset_state()  # it keeps the precision of the first run of a process for all later ones
    return Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        gradient_accumulation_steps=accumulate,
        log_with=list(recipe.trackers) or None,
        project_dir=str(output),
        fsdp_plugin=plugin_of(recipe),
    )


def step_batches(
    recipe: Recipe, parts: Parts, accelerator: Accelerator, start: int, accumulate: int, workers: int
) -> Batches:
    """This process's batches of the steps from `start` on, `accumulate` a step, on the CPU."""
    sampler = StepSampler(
        len(parts.source),
        recipe.batch_size,
        recipe.seed,
        start,
        parts.plan.steps,
        accumulate,
        accelerator.process_index,
        accelerator.num_processes,
        getattr(parts.source, "order", None),
    )
    cuda = accelerator.device.type == "cuda"
    return Batches(make_loader(parts.source, parts.objective.transform, sampler, workers, cuda, parts.curriculum))


def step_seed(*numbers: int) -> int:
    """The seed of a step's randomness: of the recipe's seed, the step, the part of the batch and the process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
