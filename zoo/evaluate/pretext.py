"""How well a finished run of PIRL, Jigsaw or Jigsaw Clustering does its own pretext task, on draws it never saw.

    zoo eval pretext runs/pirl_nano                       # writes runs/pirl_nano/evaluation.json
    zoo eval pretext runs/jigclu_nano -o evaluation.json

The samples are those that would come next if the run went on: new crops, patches and permutations, and of an
endless source new images. PIRL: the share of jigsaws whose nearest vector in the whole bank is their own image's.
Jigsaw: the share of permutations found. Jigsaw Clustering: the share of quarters whose place is found.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import TrainingError
from zoo.train.build import make_objective, make_source
from zoo.train.data.loading import ENDLESS, StepSampler, make_loader
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import load_recipe
from zoo.train.run import read_checkpoint, read_log
from zoo.train.schedule import make_plan

# of each objective: its figure of a batch; chance; and the bar, a share to be exceeded
MEASURES: dict[str, tuple[Callable[[Any, dict[str, Tensor]], dict[str, Tensor]], Callable[[Any], float], Any]] = {
    "pirl": (
        lambda objective, batch: {"own_image_nearest": objective.own_image_is_nearest(batch).float().mean()},
        lambda objective: 1 / len(objective.bank.vectors),
        lambda chance: 0.5,
    ),
    "jigsaw": (
        lambda objective, batch: {"permutation_accuracy": objective(batch)["accuracy"]},
        lambda objective: 1 / len(objective.permutations),
        lambda chance: 10 * chance,
    ),
    "jigsaw_clustering": (
        lambda objective, batch: {"location_accuracy": objective(batch)["location_accuracy"]},
        lambda objective: 1 / 4,
        lambda chance: 1.4 * chance,
    ),
}


def load_run(run: Path) -> tuple[Any, Any, Objective]:
    """A run's recipe, its source, and its objective with everything it has learned, in evaluation mode."""
    checkpoint = run / "checkpoint.safetensors"
    if not checkpoint.is_file():
        raise TrainingError(f"{run} holds no training run; name the --output folder of `zoo train`.")
    recipe = load_recipe(run / "recipe.yaml")
    source = make_source(recipe)
    objective = make_objective(recipe, source)
    _, tensors = read_checkpoint(checkpoint)
    try:
        objective.load_state_dict(
            {key.removeprefix("objective."): value for key, value in tensors.items() if key.startswith("objective.")}
        )
    except RuntimeError as error:
        raise TrainingError(
            f"{checkpoint} doesn't fit the recipe beside it; evaluate the folder of one run."
        ) from error
    return recipe, source, objective.eval()


@torch.inference_mode()
def evaluate(run: Path, samples: int) -> dict[str, Any]:
    """The figure of a run with its bar, and what is needed to get it again."""
    recipe, source, objective = load_run(run)
    name = recipe.objective["name"]
    if name not in MEASURES:
        raise TrainingError(f"{run} is a run of '{name}'; name one of {', '.join(MEASURES)}.")
    measure, chance_of, bar_of = MEASURES[name]
    done = read_log(run)[-1]
    steps = make_plan(recipe, len(source)).steps
    count = max(1, samples // recipe.batch_size)
    sampler = StepSampler(len(source), recipe.batch_size, recipe.seed, steps, steps + count, 1, 0, 1)
    loader = make_loader(source, objective.transform, sampler, workers=0, pin_memory=False)
    torch.manual_seed(recipe.seed)  # for what is drawn outside of the data workers
    rows = [measure(objective, batch) for batch in loader]
    figures = {figure: torch.stack([row[figure] for row in rows]).mean().item() for figure in rows[0]}
    chance = chance_of(objective)
    bar = bar_of(chance)
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "parameters": sum(p.numel() for p in objective.parameters()),
        **figures,
        "chance": chance,
        "bar": f"above {bar:g}",
        "holds": next(iter(figures.values())) > bar,
        "samples": count * recipe.batch_size,
        "images": "endless, new ones" if len(source) >= ENDLESS else f"{len(source)}, as in training",
        "seed": recipe.seed,
        "steps": done["step"],
        "training_seconds": round(done["seconds"]),
        "final_loss": done["loss"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
