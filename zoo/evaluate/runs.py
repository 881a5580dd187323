"""The model of a training run's folder, as it is used and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import nn

from zoo.errors import TrainingError
from zoo.train.build import make_model
from zoo.train.recipe import Recipe, load_recipe
from zoo.weights.disk import safetensors_format

RECIPE = "recipe.yaml"


class TrainedModel(NamedTuple):
    """A model in eval mode, the recipe that it was trained by, the file of its weights, and their step."""

    model: Any
    recipe: Recipe
    weights: Path
    sha256: str
    step: int


def load_run(folder: Path, check: Callable[[nn.Module, Recipe], None] = lambda model, recipe: None) -> TrainedModel:
    """The model of a finished run, or of one that is still going or was stopped, from its last checkpoint.

    check: called before weights are read, to refuse a model of another kind.

    Raises RecipeError (a ValueError) or TrainingError (a RuntimeError).
    """
    recipe = load_recipe(folder / RECIPE)
    model: Any = make_model(replace(recipe, init=""))  # what it started from may be gone, and is overwritten
    check(model, recipe)
    path, prefix = folder / "model.safetensors", ""
    if not path.exists():
        path, prefix = folder / "checkpoint.safetensors", "objective.model."
    if not path.exists():
        raise TrainingError(f"{folder} has neither weights nor a checkpoint yet; wait for its first checkpoint.")
    safetensors_format.header_digest(path)  # says what is wrong with a damaged file
    data = path.read_bytes()  # once, since a running training replaces the file
    try:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        step = json.loads(about["run"])["step"] if prefix else int(about["steps"])
        tensors = safetensors.torch.load(data)
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (RuntimeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrainingError(f"{path} doesn't fit the recipe beside it; name the folder of one run.") from error
    return TrainedModel(model.eval(), recipe, path, hashlib.sha256(data).hexdigest(), step)
