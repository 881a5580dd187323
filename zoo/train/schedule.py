"""What a recipe comes to in steps, and the learning rate of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoo.errors import RecipeError
from zoo.train.data.loading import ENDLESS
from zoo.train.recipe import Recipe, Schedule


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on a given source: whole numbers of steps.

    unit: steps of one of the schedule's units. validate_every, log_every, save_every: so many steps.
    """

    steps: int
    unit: int
    warmup: float
    length: float
    lr: float
    schedule: Schedule
    validate_every: int
    log_every: int
    save_every: int

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from warmup_lr, then what `Schedule` says, over `length` steps of which `steps` are run."""
        schedule = self.schedule
        if schedule.staircase:
            step -= step % self.unit
        if step < self.warmup:
            return schedule.warmup_lr + (self.lr - schedule.warmup_lr) * step / self.warmup
        if schedule.milestones:
            return self.lr * schedule.gamma ** sum(step >= milestone * self.unit for milestone in schedule.milestones)
        progress = (step - self.warmup) / max(1.0, self.length - self.warmup)
        low = schedule.min_lr
        return low + (self.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def logs(self, done: int) -> bool:
        """Whether the log gets a row after `done` steps."""
        return done % self.log_every == 0

    def saves(self, done: int) -> bool:
        """Whether the run is saved after `done` steps."""
        return done % self.save_every == 0 or done == self.steps

    def validates(self, done: int) -> bool:
        """Whether the run is validated after `done` steps, if it is at all."""
        return done % self.validate_every == 0 or done == self.steps


def make_plan(recipe: Recipe, samples: int) -> Plan:
    """Steps and learning rates of a recipe on a source of `samples` samples."""
    schedule = recipe.schedule
    unit = 1
    if schedule.unit == "epochs":
        if samples >= ENDLESS:
            raise RecipeError("Procedural data has no epochs; give the recipe's schedule in steps.")
        unit = samples // recipe.batch_size
        if unit == 0:
            raise RecipeError(
                f"{samples} samples don't fill one batch of {recipe.batch_size}; lower batch_size or give more data."
            )
    stop = schedule.length if schedule.stop is None else schedule.stop
    steps = int(stop * unit)
    return Plan(
        steps,
        unit,
        schedule.warmup * unit,
        schedule.length * unit,
        recipe.learning_rate(),
        schedule,
        validate_every=steps if schedule.validate_every is None else max(1, int(schedule.validate_every * unit)),
        log_every=recipe.log_steps,
        save_every=recipe.checkpoint_steps,
    )
