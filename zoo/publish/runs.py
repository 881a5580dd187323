"""A training run's folder as what is to be published: its model, its recipe and how far it came."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from safetensors import safe_open
from torch import nn

from zoo.catalog import Metric
from zoo.errors import CorruptWeightsError, PublishError, RecipeError, UnknownVariantError
from zoo.lookup import find_variant
from zoo.models.shared.ancestry import Ancestor, published_variant, strictest
from zoo.models.shared.registry import BUILDERS
from zoo.publish.folder import CONFIG, RECIPE, metadata_of, own_file, write_text
from zoo.publish.private import last_name
from zoo.publish.temporary import workspace
from zoo.train.recipe import Recipe, load_recipe
from zoo.weights import save_safetensors
from zoo.weights.disk import files
from zoo.weights.network.hub import HUB_FILENAME

CHECKPOINT, LOG, RESULTS = "checkpoint.safetensors", "log.jsonl", "results.json"


@dataclass(frozen=True)
class Run:
    """A training run, finished or not. rows: of its log. steps: how many the weights have seen.

    classes: names of a classifier's. metrics: of the validation at the end.
    """

    recipe: Recipe
    rows: list[dict[str, Any]]
    steps: int
    finished: bool
    classes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()


def read_run(run: str | Path) -> tuple[nn.Module, Run]:
    """The model of a folder of `zoo train`, of a finished run or one that was interrupted, and what is known of it.

    Raises PublishError if it holds no run, files that are none of its own, or those of different runs.
    """
    from zoo.train.run import read_log  # needs more packages than models do

    run = Path(run)
    if own_file(run, RECIPE) is None:
        raise PublishError(
            f"{run} holds neither a training run ({RECIPE}) nor a folder to publish ({CONFIG}); give one of them."
        )
    recipe = load_recipe(run / RECIPE)
    rows = read_log(run) if own_file(run, LOG) else []
    if (weights := own_file(run, HUB_FILENAME)) is not None:
        about = metadata_of(weights)
        _check_same_run(recipe, about, weights)
        model = _model_of_run(recipe, weights)
        results = (files.read_json(run / RESULTS) if own_file(run, RESULTS) else None) or {}
        classes, metrics = _classes(results), _figures(recipe, results)
        state = Run(recipe, rows, _steps(about.get("steps"), weights), True, classes, metrics)
    elif (checkpoint := own_file(run, CHECKPOINT)) is not None:
        with workspace() as temporary:
            path = temporary / HUB_FILENAME
            steps = _take_weights(checkpoint, path, recipe)
            model = _model_of_run(recipe, path)
        state = Run(recipe, [row for row in rows if row["step"] <= steps], steps, finished=False)
    else:
        raise PublishError(f"The run in {run} has saved no weights yet; let it reach its first checkpoint.")
    return model, state


def _steps(value: Any, path: Path) -> int:
    """A number of steps out of a file; text in a finished run's weights, a number in a checkpoint."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if type(value) is int and 0 <= value < 1 << 53:
        return value
    raise PublishError(f"{path} doesn't say how many steps it was trained; publish what `zoo train` wrote.")


def _check_same_run(recipe: Recipe, about: dict[str, str], weights: Path) -> None:
    """Raise PublishError for weights that another recipe than the folder's has trained."""
    said = {"architecture": recipe.model, "recipe": recipe.name}
    try:
        args = json.loads(about.get("model_args", "null"))
    except (ValueError, RecursionError):
        args = "damaged"
    same = all(about.get(key, value) == value for key, value in said.items())
    if not same or args not in (None, json.loads(json.dumps(recipe.model_args))):
        raise PublishError(
            f"{weights} was trained by another recipe than the {RECIPE} beside it, so a card would be wrong; publish "
            "the folder of one run."
        )


def _classes(results: dict[str, Any]) -> tuple[str, ...]:
    classes = results.get("classes", ())
    if not (isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)):
        raise PublishError(f"The classes in {RESULTS} are no list of names; remove the file.")
    return tuple(classes)


_OF_LABELS = ("classification", "linear_probe", "linear_heads")
"""Objectives whose figures are of classes."""


def _figures(recipe: Recipe, results: dict[str, Any]) -> tuple[Metric, ...]:
    data = {**recipe.data, **recipe.validation}
    name = last_name(str(data.get("path") or data.get("source")))
    task = str(recipe.objective["name"])
    task = "image classification" if task in _OF_LABELS else task.replace("_", " ")
    figures = {key: value for key, value in results.items() if key.startswith("validation_")}
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise PublishError(f"{key} in {RESULTS} is no number; remove the file.")
    return tuple(
        Metric(
            task,
            name,
            key.removeprefix("validation_"),
            value,
            "held-out images",
            "zoo train",
        )
        for key, value in figures.items()
    )


def _take_weights(checkpoint: Path, path: Path, recipe: Recipe) -> int:
    """Copy an interrupted run's model out of its checkpoint, described as a finished one is; returns its steps."""
    prefix = "objective.model."
    try:
        state = json.loads(metadata_of(checkpoint)["run"])
        steps, ancestry, theirs = _steps(state["step"], checkpoint), state.get("ancestry", {}), state["recipe"]
        ancestry = {key: value for key, value in ancestry.items() if isinstance(value, str)}
        name, model, args = theirs["name"], theirs["model"], theirs.get("model_args", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptWeightsError(f"{checkpoint} is no checkpoint of a run; publish what `zoo train` wrote.") from error
    with safe_open(checkpoint, "pt") as file:
        tensors = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    about = dict(architecture=model, recipe=name, model_args=json.dumps(args))
    _check_same_run(recipe, about, checkpoint)
    save_safetensors(tensors, path, {**about, "steps": str(steps), **ancestry})
    return steps


def _model_of_run(recipe: Recipe, weights: Path) -> nn.Module:
    from zoo.train.build import check_model_args  # needs more packages than models do

    try:
        if recipe.model not in BUILDERS:
            find_variant(recipe.model)
        args = check_model_args(recipe)
    except (UnknownVariantError, RecipeError) as error:
        raise PublishError(f"The run of {weights} can't be published: {error}") from error
    started_from = recipe.init or (recipe.model if args.pop("pretrained", False) else None)
    overlay = {"file": str(weights)}
    model: Any = timm.create_model(recipe.model, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval()
    # what the recipe says, for a run from before weights recorded it, and over what they say themselves
    if started_from and (variant := published_variant(started_from)) is not None:
        said = Ancestor(variant.name, variant.license.lower())
        model.ancestor = strictest(*([model.ancestor] if model.ancestor else []), said)
    return model


def write_recipe(recipe: Recipe, path: Path) -> None:
    write_text(path, yaml.safe_dump(json.loads(json.dumps(recipe.to_dict()))))


def draw_loss(run: Run, path: Path) -> None:
    from zoo.train.run import draw_loss

    if run.rows:
        draw_loss(run.rows, path, run.recipe.name)
