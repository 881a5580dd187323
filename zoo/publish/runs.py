"""A training run's folder as what is to be published: its model, its recipe and how far it came."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from safetensors import safe_open
from torch import nn

from zoo.catalog import Metric
from zoo.errors import PublishError, UnknownVariantError
from zoo.lookup import find_variant
from zoo.models import Ancestor
from zoo.publish.folder import CONFIG, RECIPE, metadata_of
from zoo.train.recipe import Recipe, load_recipe
from zoo.weights import files, save_safetensors
from zoo.weights.hub import HUB_FILENAME


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

    Raises PublishError if it holds no run.
    """
    from zoo.train.run import read_log  # needs more packages than models do

    run = Path(run)
    if not (run / RECIPE).is_file():
        raise PublishError(
            f"{run} holds neither a training run ({RECIPE}) nor a folder to publish ({CONFIG}); give one of them."
        )
    recipe = load_recipe(run / RECIPE)
    rows = read_log(run) if (run / "log.jsonl").is_file() else []
    if (run / HUB_FILENAME).is_file():
        about = metadata_of(run / HUB_FILENAME)
        model = _model_of_run(recipe, run / HUB_FILENAME)
        results = files.read_json(run / "results.json") or {}
        classes, metrics = tuple(results.get("classes", ())), _figures(recipe, results)
        state = Run(recipe, rows, int(about["steps"]), True, classes, metrics)
    elif (run / "checkpoint.safetensors").is_file():
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / HUB_FILENAME
            steps = _take_weights(run / "checkpoint.safetensors", path, recipe)
            model = _model_of_run(recipe, path)
        state = Run(recipe, [row for row in rows if row["step"] <= steps], steps, finished=False)
    else:
        raise PublishError(f"The run in {run} has saved no weights yet; let it reach its first checkpoint.")
    return model, state


def _figures(recipe: Recipe, results: dict[str, Any]) -> tuple[Metric, ...]:
    data = {**recipe.data, **recipe.validation}
    name = Path(str(data.get("path") or data.get("source"))).name
    return tuple(
        Metric("image classification", name, key.removeprefix("validation_"), value, "held-out images", "zoo train")
        for key, value in results.items()
        if key.startswith("validation_")
    )


def _take_weights(checkpoint: Path, path: Path, recipe: Recipe) -> int:
    """Copy an interrupted run's model out of its checkpoint, described as a finished one is; returns its steps."""
    state = json.loads(metadata_of(checkpoint)["run"])
    prefix = "objective.model."
    with safe_open(checkpoint, "pt") as file:
        tensors = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    about = dict(architecture=recipe.model, recipe=recipe.name, steps=str(state["step"]))
    save_safetensors(tensors, path, {**about, **state.get("ancestry", {})})
    return state["step"]


def _model_of_run(recipe: Recipe, weights: Path) -> nn.Module:
    if recipe.model == "create_pair_model":
        raise PublishError(
            "A model of create_pair_model has no architecture that timm could make again from its name, so it would "
            "not load back; train one of `zoo list --form binocular`."
        )
    args = dict(recipe.model_args)
    started_from = recipe.init or (recipe.model if args.pop("pretrained", False) else None)
    overlay = {**args.pop("pretrained_cfg_overlay", {}), "file": str(weights)}
    model: Any = timm.create_model(recipe.model, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval()
    if started_from and model.ancestor is None:  # a run from before these were recorded, or weights of the package
        with suppress(UnknownVariantError):  # files and runs say themselves what they come from
            variant = find_variant(started_from)
            model.ancestor = Ancestor(variant.name, variant.license.lower())
    return model


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The recipe as it was run, with files and folders by their last names: the rest is nobody's business."""
    settings = json.loads(json.dumps(recipe.to_dict()))
    for place, key in ((settings["data"], "path"), (settings["validation"], "path"), (settings, "init")):
        if isinstance(place.get(key), str):
            place[key] = ",".join(Path(part).name for part in place[key].split(","))
    path.write_text(yaml.safe_dump(settings), "utf-8")


def draw_loss(run: Run, path: Path) -> None:
    from zoo.train.run import draw_loss

    if run.rows:
        draw_loss(run.rows, path, run.recipe.name)
