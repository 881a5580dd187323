"""The one training loop: any objective, on one CPU or GPU or many (accelerate underneath).

A step is a pure function of (recipe, step, state): samples come from the step's number, randomness is seeded
by it. So a run killed at any moment and started again with the same command ends with the same weights, bit
for bit on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from zoo.errors import TrainingError, ZooError
from zoo.train.build import make_curriculum, make_objective, make_optimizer, make_source, make_validation_source
from zoo.train.data.loading import StepSampler, make_loader, to_device
from zoo.train.recipe import Recipe
from zoo.train.run import Run, check_finite
from zoo.train.schedule import make_plan
from zoo.train.stopping import StopSignal
from zoo.train.validate import check_validation, validate


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    workers: int = 2,
    accumulate: int = 1,
    progress: bool = True,
) -> Path:
    """Run a recipe into the folder `output`, or go on with the run that is there; returns the weights' path.

    output gets recipe.yaml, log.jsonl, tensorboard/, checkpoint.safetensors (everything needed to go on,
    replaced atomically), and at the end model.safetensors, loss.png and, if
    it is validated, results.json; best.safetensors, where the objective says which validation is the best, holds the
    weights as they were then.
    accumulate: parts that each process's share of a batch is computed in.

    Raises RecipeError, DataError (ValueErrors), TrainingError (RuntimeError), DivergedError (ArithmeticError).
    """
    output = Path(output)
    accelerator = make_accelerator(recipe, accumulate)
    rank, world = accelerator.process_index, accelerator.num_processes
    source = make_source(recipe)
    plan = make_plan(recipe, len(source))
    objective = make_objective(recipe, source)
    curriculum = make_curriculum(recipe, source, objective)
    held_out = make_validation_source(recipe)
    if held_out is not None:
        check_validation(objective, source, held_out)
    if recipe.sync_batchnorm and world > 1:
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    optimizer = make_optimizer(recipe, objective)

    run = Run(output, recipe, plan)
    start = run.resume(objective, optimizer) if run.checkpoint.exists() else 0
    if accelerator.is_main_process:
        run.open(start)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    sampler = StepSampler(
        len(source),
        recipe.batch_size,
        recipe.seed,
        start,
        plan.steps,
        accumulate,
        rank,
        world,
        getattr(source, "order", None),
    )
    loader = make_loader(source, objective.transform, sampler, workers, accelerator.device.type == "cuda", curriculum)
    batches = iter(loader)

    bar = tqdm(
        total=plan.steps,
        initial=start,
        desc=recipe.name,
        unit="step",
        disable=not (progress and accelerator.is_main_process),
    )
    names: list[str] = []  # of what the objective reports: the loss first
    reports: list[Tensor] = []  # on the device: reading each step's would make the device wait
    wrapped.train()
    with StopSignal() as stop:
        for step in range(start, plan.steps):
            objective.configure(**curriculum.objective(step))
            lr = plan.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            parts: list[Tensor] = []
            for part in range(accumulate):
                batch = to_device(next_batch(batches), source, accelerator.device)
                torch.manual_seed(step_seed(recipe.seed, step, part, rank))
                with accelerator.accumulate(wrapped):
                    outcome = wrapped(batch)
                    accelerator.backward(outcome["loss"])
                    if accelerator.sync_gradients and recipe.optimizer.clip_grad is not None:
                        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.optimizer.clip_grad)
                    optimizer.step()
                    optimizer.zero_grad()
                names = names or ["loss", *sorted(outcome.keys() - {"loss"})]
                parts.append(torch.stack([outcome[name].detach().float() for name in names]))
            done = step + 1
            objective.after_step(done / plan.steps)
            reports.append(torch.stack(parts).mean(dim=0))
            bar.update()

            validating = held_out is not None and (done % plan.validate_every == 0 or done == plan.steps)
            saving = done % recipe.checkpoint_steps == 0 or done == plan.steps or (stop.wished and world == 1)
            if done % recipe.log_steps == 0 or saving or validating:
                # the wish to stop travels with the reports, so that several processes stop at the same step
                wish = torch.full((1, len(names)), float(stop.wished), device=accelerator.device)
                *rows, wished = accelerator.reduce(torch.cat((torch.stack(reports), wish)), "mean").tolist()
                check_finite([row[0] for row in rows], done, plan)
                stopping = wished[0] > 0
                saving = saving or stopping
                figures: dict[str, float] = {}
                if validating:
                    share = recipe.batch_size // (accumulate * world)
                    before = time.monotonic()
                    figures = validate(objective, held_out, accelerator, share, workers)
                    run.logged += time.monotonic() - before  # images_per_second is of the training
                if accelerator.is_main_process:
                    bar.set_postfix(run.log(done, names, rows, lr, figures))
                    if validating:
                        run.keep_best(objective)
                reports.clear()
                if saving and accelerator.is_main_process:
                    run.save(done, objective, optimizer)
                if stopping and done < plan.steps:
                    bar.close()
                    raise TrainingError(
                        f"Stopped after step {done} of {plan.steps} with everything saved; start the same command "
                        "again to go on."
                    )
    bar.close()
    if accelerator.is_main_process:
        run.finish(objective.trained(), getattr(source, "classes", ()))
    accelerator.wait_for_everyone()
    return run.weights


def make_accelerator(recipe: Recipe, accumulate: int) -> Accelerator:
    AcceleratorState._reset_state()  # it keeps the precision of the first run of a process for all later ones
    return Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no", gradient_accumulation_steps=accumulate
    )


def next_batch(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The next batch; what a data worker raises comes as its sentence, without the worker's traceback."""
    try:
        return next(batches)
    except ZooError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None


def step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
